"""Fuzzing: seeded mutations of everything that clipmill reads, each run through the command that reads it."""
