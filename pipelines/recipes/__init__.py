"""Papers as runnable scripts that read from top to bottom."""
