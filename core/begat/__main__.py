"""`python -m begat` is the command `begat`."""

import sys

from begat.cli import main

if __name__ == "__main__":
    sys.exit(main())
