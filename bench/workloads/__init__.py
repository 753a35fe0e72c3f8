"""The shapes of the suites, one CSV file per collection, each row with its source."""
