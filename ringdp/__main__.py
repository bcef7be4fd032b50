"""`python -m ringdp` is the `ringdp` command."""

import sys

from ringdp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
