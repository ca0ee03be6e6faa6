"""`python -m clipmill`: the command line, as `clipmill` runs it."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
