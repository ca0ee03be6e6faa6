"""The report: one self-contained HTML page per selection of a dataset."""
