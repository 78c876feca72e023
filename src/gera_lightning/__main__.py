"""`python -m gera_lightning` is the command `gera`."""

import os
import sys

from gera_lightning.cli import main

if __name__ == "__main__":
    code = main()
    if code > 128:  # by a signal: threads of a collective that was cut off cannot be joined
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
