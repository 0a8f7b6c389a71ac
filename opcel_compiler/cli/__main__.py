"""`python -m opcel_compiler.cli` is `opcel`."""

from __future__ import annotations

import sys

from opcel_compiler.cli import main

sys.exit(main())
