"""Hostile corpus: seeded mutations of everything that clipmill reads, each through the command that reads it."""
