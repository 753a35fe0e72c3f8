"""Networks on the suite's own algorithms: as data, with weights, folded, prepared and run."""
