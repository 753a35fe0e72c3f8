"""One file per library; the registry reads every module here."""
