"""`python -m fastdarts` is the command `fastdarts`."""

import sys

from fastdarts.cli import main

if __name__ == "__main__":
    sys.exit(main())
