"""`python -m iii_zmq.cli`: the same as `iii-broker`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
