"""`python -m clipmill`: the same command line as `clipmill`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
