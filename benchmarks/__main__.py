"""One entry for all benchmarks: `python -m benchmarks NAME [--out DIR] [--quick]`."""

import argparse
import importlib
import sys
from pathlib import Path

import jax

NAMES = ("ensemble", "taylor", "energy", "splitting_block", "structured", "imports")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, help="folder for NAME.json and NAME.md")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    arguments = parser.parse_args()
    benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    jax.config.update("jax_enable_x64", benchmark.X64)
    report = benchmark.run(quick=arguments.quick)
    print(report.markdown())
    if arguments.out is not None:
        report.write(arguments.out)
    return 0 if arguments.quick or all(target.reached for target in report.targets) else 1


if __name__ == "__main__":
    sys.exit(main())
