"""Fault injection: kill and disturb a pipeline until it completes, and compare it with an undisturbed run."""
