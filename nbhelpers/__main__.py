"""``python -m nbhelpers``, for ``accelerate launch -m nbhelpers train …``."""

import sys

from nbhelpers.cli import main

sys.exit(main())
