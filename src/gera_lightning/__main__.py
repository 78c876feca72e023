"""`python -m gera_lightning` is the command `gera`."""

import sys

from gera_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
