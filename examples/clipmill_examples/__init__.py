"""Scorers for clipmill, to copy from."""
