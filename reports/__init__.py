"""What the measurements mean: records -> statistics, tables, plots and one page. Imports bench.record and bench.store only."""
