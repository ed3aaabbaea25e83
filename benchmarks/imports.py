"""What `import jaxdyn` adds to `import diffrax`, in fresh processes."""

import statistics
import subprocess
import sys
import time

from .report import Report, Table, Target

X64 = False
MODULES = ("jax", "diffrax", "jaxdyn")


def run(quick: bool = False) -> Report:
    rounds = 2 if quick else 11
    seconds: dict[str, list[float]] = {module: [] for module in MODULES}
    for module in MODULES:
        _import(module)  # writes byte code and fills the page cache
    for turn in range(rounds):
        for shift in range(len(MODULES)):
            module = MODULES[(turn + shift) % len(MODULES)]
            seconds[module].append(_import(module))
    ratios = [a / b for a, b in zip(seconds["jaxdyn"], seconds["diffrax"], strict=True)]
    rows = [[module, statistics.median(s), min(s)] for module, s in seconds.items()]
    return Report(
        "imports",
        f"Seconds from the start of a fresh process to its end, {rounds} rounds in turn.",
        [Table("Imports", ["import", "median", "best"], rows)],
        [
            Target(
                "import jaxdyn / import diffrax, median of pairs", statistics.median(ratios), 1.15
            )
        ],
    )


def _import(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start
