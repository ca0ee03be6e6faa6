"""The command line, as `clipmill` and as `python -m clipmill`."""

import signal
import sys

from clipmill.errors import INTERRUPTED, interrupt


def main() -> None:
    """Run the command line. Ctrl-C and SIGTERM end it without a traceback, also while its modules are imported."""
    signal.signal(signal.SIGTERM, interrupt)
    try:
        from pipelines.cli import main as run  # takes most of a second

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
