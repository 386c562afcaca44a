"""`python -m stsl` is the command line."""

import sys

from stsl.cli import main

sys.exit(main())
