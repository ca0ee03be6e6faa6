"""Papers as scripts: each reads from top to bottom like the paper, and runs."""
