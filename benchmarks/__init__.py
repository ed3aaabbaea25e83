"""Benchmarks: `python -m benchmarks NAME [--out DIR] [--quick]`."""

import os

# Read when equinox is imported: a check inside a loop that raises would be timed along with it.
os.environ.setdefault("EQX_ON_ERROR", "nan")
