"""Scorers and a captioner for clipmill, to copy from."""
