"""What comes before the first result: importing, compiling, and compiling with a cache on disk."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

import jaxdyn as jd
from jaxdyn import plot

from .ensemble import problem
from .report import Report, Table, Target

X64 = False
MODULES = ("jax", "diffrax", "jaxdyn")
SOLVERS: dict[str, diffrax.AbstractSolver] = {
    "Strang": jd.Strang(),
    "BlanesMoan4": jd.BlanesMoan4(),
    "RK4": jd.RK4(),
    "Taylor(8)": jd.Taylor(8),
    "Taylor(16)": jd.Taylor(16),
}
SIZES = (8, 64, 256)
BATCH, STEPS, DT = 64, 100, 0.05
# Seconds for one process, and after which no other is begun: what is left out is named.
LIMIT, BUDGET = 120, 420
# Byte code is kept, as it is of what pip installs: without, each import compiles our sources anew.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
ROOT = Path(__file__).parent.parent


def run(quick: bool = False) -> Report:
    rounds = 2 if quick else 11
    seconds = imports(rounds)
    ratios = [a / b for a, b in zip(seconds["jaxdyn"], seconds["diffrax"], strict=True)]
    rows = [[module, statistics.median(s), min(s)] for module, s in seconds.items()]
    report = Report(
        "startup",
        f"Imports: seconds from the start of a fresh process to its end, {rounds} rounds in turn. "
        "Compilation: the first call of `simulate`, and of the gradient of the mean of the end "
        "state with respect to W and x0, less the median of five later calls: tracing and "
        f"compiling. Dense W, {BATCH} trajectories, {STEPS} steps, float32. Each solver and size "
        "in a fresh process, which fills an empty persistent compilation cache of JAX; and in "
        "another that finds its programs there.",
        [Table("Imports (seconds)", ["import", "median", "best"], rows)],
        [
            Target(
                "import jaxdyn / import diffrax, median of pairs", statistics.median(ratios), 1.15
            )
        ],
    )
    solvers, sizes = (("Strang", "RK4"), (8,)) if quick else (tuple(SOLVERS), SIZES)
    compiled = compilation(solvers, sizes, report.skipped)
    columns = ["solver", "n", "simulate", "simulate, cached", "gradient", "gradient, cached"]
    rows = [[name, n, *times] for (name, n), times in compiled.items()]
    report.tables.append(Table("Compilation (seconds)", columns, rows))
    report.draw = lambda figure: draw(figure, seconds, compiled)
    return report


def imports(rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {module: [] for module in MODULES}
    for module in MODULES:
        _import(module)  # writes byte code and fills the page cache
    for turn in range(rounds):
        for shift in range(len(MODULES)):
            module = MODULES[(turn + shift) % len(MODULES)]
            seconds[module].append(_import(module))
    return seconds


def _import(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def compilation(solvers, sizes, skipped: list[str]) -> dict[tuple[str, int], list[float]]:
    """Seconds to compile `simulate` and its gradient: each without a cache, and with one."""
    out = {}
    deadline = time.monotonic() + BUDGET
    for n in sizes:
        for name in solvers:
            if time.monotonic() > deadline:
                skipped.append(
                    f"{name}, n = {n}: not begun, the {BUDGET} s of this part being spent"
                )
                continue
            with tempfile.TemporaryDirectory() as cache:
                try:
                    cold, warm = _compile(name, n, cache), _compile(name, n, cache)
                except subprocess.TimeoutExpired:
                    skipped.append(f"{name}, n = {n}: compiling took longer than {LIMIT} s")
                    continue
            out[name, n] = [s for pair in zip(cold, warm, strict=True) for s in pair]
    return out


def _compile(name: str, n: int, cache: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.startup", name, str(n), cache]
    done = subprocess.run(
        command, check=True, cwd=ROOT, timeout=LIMIT, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def first_calls(name: str, n: int) -> list[float]:
    """Seconds of the first call less the median of later ones: `simulate`, then its gradient."""
    cell, x0 = problem(n, BATCH, jnp.float32)

    def end(cell, x0):
        return jd.simulate(cell, x0, n_steps=STEPS, dt=DT, solver=SOLVERS[name]).ys[:, 0]

    gradient = jax.jit(jax.grad(lambda *a: jnp.mean(end(*a)), argnums=(0, 1)))
    out = []
    for function in (end, gradient):
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(function(cell, x0))
            seconds.append(time.perf_counter() - start)
        out.append(max(0.0, seconds[0] - statistics.median(seconds[1:])))
    return out


def draw(figure: Any, seconds: dict, compiled: dict) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.bar(list(seconds), [statistics.median(s) for s in seconds.values()], color=plot.BLUE)
    left.set_ylabel("seconds to import")
    names = dict.fromkeys(name for name, _ in compiled)
    for name, color in zip(names, plot.COLORS, strict=False):
        sizes = [n for solver, n in compiled if solver == name]
        cold, warm = ([compiled[name, n][i] for n in sizes] for i in (2, 3))
        right.loglog(sizes, cold, "o-", color=color, ms=3.5, lw=1.5, label=name)
        right.loglog(sizes, warm, "o--", color=color, mfc="white", ms=3.5, lw=1.0)
    right.set_xticks(SIZES, [str(n) for n in SIZES], minor=False)
    right.set_xticks([], minor=True)
    right.set_xlabel("units n")
    right.set_ylabel("seconds to compile a gradient")
    right.set_title("solid: no cache; dashed: programs found in a cache on disk")
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    name, n, cache = sys.argv[1:]
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    print(json.dumps(first_calls(name, int(n))))


if __name__ == "__main__":
    main()
