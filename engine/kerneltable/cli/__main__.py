"""`python -m kerneltable.cli` is `kerneltable`."""

import sys

from kerneltable.cli import main

if __name__ == "__main__":
    sys.exit(main())
