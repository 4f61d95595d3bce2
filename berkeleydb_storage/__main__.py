"""Runs the command: ``python -m berkeleydb_storage``."""

import sys

from berkeleydb_storage.cli import main

if __name__ == "__main__":
    sys.exit(main())
