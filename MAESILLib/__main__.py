"""``python -m MAESILLib`` is the command line."""

import sys

from MAESILLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
