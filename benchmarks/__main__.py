"""One entry for all benchmarks: `python -m benchmarks NAME [--out DIR] [--quick]`.

`python -m benchmarks readme` writes the README's tables anew from benchmarks/results.
"""

import argparse
import importlib
import sys
from pathlib import Path

import jax

from . import readme

NAMES = (
    "ensemble",
    "precision",
    "energy",
    "splitting_block",
    "tiles",
    "structured",
    "gradient",
    "startup",
    "fit",
    "forecast",
    "lyapunov",
    "sweep",
    "kernel",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, "readme"))
    parser.add_argument("--out", type=Path, help="folder for NAME.json, NAME.md and NAME.png")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    arguments = parser.parse_args()
    if arguments.name == "readme":
        readme.update()
        return 0
    benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    jax.config.update("jax_enable_x64", benchmark.X64)
    report = benchmark.run(quick=arguments.quick)
    print(report.markdown())
    if arguments.out is not None:
        report.write(arguments.out)
    return 0 if arguments.quick or all(target.reached for target in report.targets) else 1


if __name__ == "__main__":
    sys.exit(main())
