"""``python -m manyeyes``."""

import sys

from manyeyes.cli import main

if __name__ == "__main__":
    sys.exit(main())
