"""The page that a researcher looks at: one self-contained HTML file per selection of a dataset."""
