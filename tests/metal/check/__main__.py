"""`python -m tests.metal.check`."""

import sys

from tests.metal.check.run import main

sys.exit(main())
