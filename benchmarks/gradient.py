"""Gradients through many steps: time and memory against the number of steps."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxdyn import plot

from .gradient_case import AMPLITUDE, DT, Case
from .report import TIMING_COLUMNS, Report, Table, Target
from .timing import Timing

X64 = True
FORWARD, OURS, DEFAULT = "forward", "reversible", "default"
VMAPPED, BATCHED, STORED = "recursive, simulate", "recursive, batch in the state", "stored"
# What is run for each method: each length is compiled anew, which is most of the time.
LENGTHS = {
    FORWARD: (100, 1_000, 10_000, 100_000, 1_000_000),
    OURS: (100, 1_000, 10_000, 100_000, 1_000_000),
    DEFAULT: (1_000, 10_000),
    VMAPPED: (1_000,),
    BATCHED: (1_000, 10_000, 100_000),
    STORED: (100, 1_000),
}
DOUBLE = (FORWARD, OURS, DEFAULT, VMAPPED, BATCHED)
# Seconds after which nothing new is begun: what is left out is named.
BUDGET = 480
# What takes so many seconds a run is run once.
SLOW = 15.0
MEMORY = 50.0  # MB
# Compiling a gradient takes minutes where it goes wrong.
COMPILE_LIMIT = 150


class Worker:
    """A process that holds one compiled case and runs it when told to."""

    def __init__(self, case: Case):
        self.case = case
        self.timing = Timing()
        self.grown: int | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gradient_case", json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )

    def compile(self, deadline: float) -> str | None:
        """Waits until it has compiled; why it did not, if so."""
        limit = min(COMPILE_LIMIT, deadline - time.monotonic())
        with ThreadPoolExecutor(1) as reader:
            line = reader.submit(self.process.stdout.readline)
            try:
                answer = line.result(timeout=max(limit, 0.0))
            except TimeoutError:
                self.process.kill()
                return f"compiling took longer than {limit:.0f} s"
        if not answer:
            self.process.wait()
            return self.process.stderr.read().strip().rpartition("\n")[2]
        self.compiled = json.loads(answer)
        return None

    def ask(self, command: str) -> float:
        """The seconds of one run; RuntimeError when it came to nothing."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read().strip().rpartition("\n")[2])
        answer = json.loads(line)
        if not answer["finite"]:
            # What equinox makes of a refusal: see EQX_ON_ERROR in __init__.py.
            raise RuntimeError("the gradient was refused, or is not finite")
        if self.grown is None:
            self.grown = answer["grown"]
        return answer["seconds"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run(quick: bool = False) -> Report:
    n, batch, rounds = (2, 4, 2) if quick else (64, 64, 5)
    lengths = {method: (100,) for method in LENGTHS} if quick else LENGTHS
    deadline = time.monotonic() + BUDGET
    report = Report(
        "gradient",
        f"x' = W tanh x, dense W with |W|_2 = 1, n = {n} units, batch {batch}, N steps of Strang "
        f"with dt = {DT}, x0 ~ {AMPLITUDE} N(0, 1): regular orbits. The loss is the mean over the "
        "batch of c . x(T) with a fixed random c; its value and its gradient with respect to W's "
        "entries and x0, all in one call. reversible: `adjoint=jd.ReversibleAdjoint()`. default: "
        "`simulate` without `adjoint`, square-root checkpointing. recursive: diffrax's "
        "RecursiveCheckpointAdjoint on the same steps, through `simulate` (one solve for each "
        "trajectory, vmapped) and as one solve whose state is the batch. stored: a plain lax.scan "
        "that keeps every step. forward: the loss alone. Each case in a process of its own. "
        "temporary: what XLA allocates beside arguments and results (memory_analysis). resident: "
        "growth of the process's peak resident memory during its first run, the compiler's "
        f"memory given back before. Medians of {rounds} rounds in turn; what takes longer than "
        f"{SLOW:g} s is run once.",
        size=(8.0, 4.2),
    )
    done: dict[tuple[str, str, int], Worker] = {}
    sizes = sorted({steps for per_method in lengths.values() for steps in per_method})
    # The headline first: what the budget cuts off is what matters least.
    order = [s for s in (10_000, 100_000, 1_000, 1_000_000, 100) if s in sizes] or sizes
    groups = [("float32", steps) for steps in order]
    groups.insert(2, ("float64", order[0]))
    for dtype, steps in groups:
        methods = [m for m, s in lengths.items() if steps in s]
        methods = [m for m in methods if dtype == "float32" or m in DOUBLE]
        cases = [Case(method, steps, n, batch, dtype) for method in methods]
        workers = start(cases, deadline, report.skipped)
        try:
            able = affordable(workers, rounds, done, deadline, report.skipped)
            race(able, rounds, report.skipped)
            done |= {(w.case.method, dtype, steps): w for w in workers}
            if dtype == "float64":
                agreement(workers, report)
        finally:
            for worker in workers:
                worker.close()
    for dtype in ("float32", "float64"):
        report.tables += tables(done, dtype)
    report.targets += targets(done, order)
    report.draw = lambda figure: draw(figure, done)
    return report


def named(case: Case) -> str:
    return f"{case.method}, {case.steps:,} steps, {case.dtype}"


def start(cases: Sequence[Case], deadline: float, skipped: list[str]) -> list[Worker]:
    """Compiles, as many at a time as there are cores."""

    def one(case):
        if time.monotonic() > deadline:
            return case, None, f"not begun, the {BUDGET} s of this benchmark being spent"
        worker = Worker(case)
        why = worker.compile(deadline)
        if why is not None:
            worker.close()
        return case, worker, why

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        outcomes = list(pool.map(one, cases))
    for case, _, why in outcomes:
        if why is not None:
            skipped.append(f"{named(case)}: {why}")
    return [worker for _, worker, why in outcomes if why is None]


def affordable(
    workers: Sequence[Worker], rounds: int, done: dict, deadline: float, skipped: list[str]
) -> list[Worker]:
    """Those that can be run in the time left; of the others the compiler's figures remain."""
    left, out = deadline - time.monotonic(), []
    for worker in workers:
        case = worker.case
        known = [
            other.timing.median / other.case.steps
            for (method, dtype, _), other in done.items()
            if (method, dtype) == (case.method, case.dtype) and other.timing.seconds
        ]
        once = min(known, default=0.0) * case.steps
        estimate = once if once > SLOW else once * (1 + rounds)
        if estimate > max(left, 0.0):
            skipped.append(
                f"{named(case)}: compiled and not run, as it would take {estimate:.0f} s of the "
                f"{BUDGET} s for all"
            )
        else:
            out.append(worker)
            left -= estimate
    return out


def race(workers: Sequence[Worker], rounds: int, skipped: list[str]) -> None:
    """Every worker once a round, in turn; the first round is for memory and to warm up."""
    first: dict[Worker, float] = {}
    for worker in workers:
        try:
            first[worker] = worker.ask("run")
        except RuntimeError as error:
            skipped.append(f"{named(worker.case)}: {error}")
    for worker, seconds in first.items():
        worker.timing.first = worker.compiled["compile"] + seconds
        if seconds > SLOW:
            worker.timing.seconds.append(seconds)
    quick = [worker for worker in first if not worker.timing.seconds]
    for turn in range(rounds):
        shift = turn % max(len(quick), 1)
        for worker in [*quick[shift:], *quick[:shift]]:
            worker.timing.seconds.append(worker.ask("run"))


def agreement(workers: Sequence[Worker], report: Report) -> None:
    """How far the gradients are from those of reverse mode with stored states."""
    with tempfile.TemporaryDirectory() as folder:
        leaves = {}
        for worker in workers:
            if worker.case.method != FORWARD and worker.timing.seconds:
                path = Path(folder) / "gradient.npz"
                worker.ask(f"save {path}")
                with np.load(path) as saved:
                    leaves[worker.case.method] = [saved[name] for name in saved.files]
    if DEFAULT not in leaves:
        return
    exact = leaves.pop(DEFAULT)
    rows = []
    for method, found in leaves.items():
        value, *gradients = [
            float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
            for a, b in zip(found, exact, strict=True)
        ]
        rows.append([method, value, *gradients])
        if method == OURS:
            what = "reversible: gradient against stored states, relative, float64"
            report.targets.append(Target(what, max(gradients), 1e-10))
    steps = workers[0].case.steps
    title = f"Largest difference from reverse mode with stored states, {steps:,} steps, float64"
    columns = ["method", "loss", "gradient of W", "gradient of x0"]
    report.tables.append(Table(title, columns, rows))


def tables(done: dict, dtype: str) -> list[Table]:
    columns = ["method", *TIMING_COLUMNS[:2], "/ forward", "temporary MB", "resident MB"]
    out = []
    for steps in sorted({s for _, d, s in done if d == dtype}):
        forward = done.get((FORWARD, dtype, steps))
        rows = []
        for method in LENGTHS:
            worker = done.get((method, dtype, steps))
            if worker is None:
                continue
            times = worker.timing
            grown = None if worker.grown is None else worker.grown / 1e6
            timed = [times.median, times.spread] if times.seconds else [None, None]
            ratio = ratio_of(worker, forward)
            rows.append([method, *timed, ratio, worker.compiled["temporary"] / 1e6, grown])
        out.append(Table(f"{steps:,} steps, {dtype}", columns, rows))
    return out


def ratio_of(one: Worker | None, other: Worker | None) -> float | None:
    if one is None or other is None or not (one.timing.seconds and other.timing.seconds):
        return None
    if len(one.timing.seconds) != len(other.timing.seconds):
        return one.timing.median / other.timing.median
    return one.timing.ratio(other.timing)


def targets(done: dict, order: Sequence[int]) -> list[Target]:
    """A number that could not be measured is NaN, which reaches nothing."""
    out = []
    for other, bound in ((FORWARD, 5.0), (VMAPPED, 0.7), (BATCHED, 0.7)):
        both = [s for s in order if {(m, "float32", s) for m in (OURS, other)} <= done.keys()]
        steps = max(both, default=order[0])
        ratio = ratio_of(*(done.get((method, "float32", steps)) for method in (OURS, other)))
        measured = float("nan") if ratio is None else ratio
        out.append(Target(f"reversible / {other}, {steps:,} steps, float32", measured, bound))
    lengths = [s for s in sorted(order) if s >= 1_000] or order
    ours = [done.get((OURS, "float32", steps)) for steps in lengths]
    span = f"{lengths[0]:,} to {lengths[-1]:,} steps" if None not in ours else "lengths missing"
    temporary = [w.compiled["temporary"] if w is not None else float("nan") for w in ours]
    grown = [float("nan") if w is None or w.grown is None else w.grown for w in ours]
    # np.max and np.min keep NaN.
    flat = float(np.max(temporary) / np.min(temporary))
    return [
        *out,
        Target(f"reversible: temporary MB, {span}", float(np.max(temporary)) / 1e6, MEMORY),
        Target(f"reversible: resident MB, {span}", float(np.max(grown)) / 1e6, MEMORY),
        Target(f"reversible: temporary, most over least, {span}", flat, 1.1),
    ]


def draw(figure: Any, done: dict) -> None:
    left, right = figure.subplots(1, 2)
    colors = dict(zip(LENGTHS, (plot.BLACK, *plot.COLORS), strict=False))
    for method in LENGTHS:
        steps = sorted(s for m, d, s in done if (m, d) == (method, "float32"))
        workers = [done[method, "float32", s] for s in steps]
        style: dict = {"color": colors[method], "marker": "o", "markersize": 3.5, "lw": 1.5}
        timed = [(w.case.steps, w.timing.median) for w in workers if w.timing.seconds]
        left.loglog(*zip(*timed, strict=True) if timed else ([], []), label=method, **style)
        sized = [max(w.compiled["temporary"], 1) / 1e6 for w in workers]
        right.loglog(steps, sized, **style)
    right.axhline(MEMORY, color=plot.GREY, lw=0.8, ls="--")
    left.set_ylabel("seconds")
    right.set_ylabel("temporary memory (MB)")
    for ax in (left, right):
        ax.set_xlabel("steps N")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
