"""One file per algorithm; the registry reads every module here."""
