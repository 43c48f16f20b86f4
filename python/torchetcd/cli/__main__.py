"""`python -m torchetcd.cli`."""

import sys

from torchetcd.cli import main

sys.exit(main())
