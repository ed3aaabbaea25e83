"""Kernels on a GPU: against the scan, diffrax, torchdiffeq and what the hardware could do at most.

Without a GPU nothing is timed, and the report says so; `--quick` then runs the kernels through
Pallas' interpreter.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd

from .ensemble import problem
from .peers import Problem, in_diffrax, in_torch, present
from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .timing import Timing, race

X64 = False
DT, STEPS = 0.05, 200
UNITS, BATCHES = (2, 3, 8, 16, 32, 64, 128), (1_000, 10_000, 100_000, 1_000_000)
KERNEL, SCAN, VMAPPED = "simulate RK4, kernel", "simulate RK4, scan", "diffrax Tsit5, vmapped"
STRANG, TORCH = "simulate Strang, kernel", "torchdiffeq rk4"
# Beyond so many numbers in the states of all trajectories the peers take more memory and patience
# than it is worth.
MOST_NUMBERS = 2e7
# Trajectories of the Lorenz system, their steps, and DiffEqGPU.jl's milliseconds for those: the
# figure of its authors (Utkarsh et al., arXiv 2304.06835), on their card.
LORENZ, LORENZ_STEPS, LORENZ_MS = 768_000, 1_000, 14.6


class Card(NamedTuple):
    """Operations a second in float32 outside of tensor cores and in bf16 on them, bytes a second:
    NVIDIA's data sheets, SXM."""

    float32: float
    bf16: float
    memory: float


CARDS = {
    "H100": Card(66.9e12, 989.4e12, 3.35e12),
    "H200": Card(66.9e12, 989.4e12, 4.8e12),
    "A100": Card(19.5e12, 312e12, 2.039e12),
}
# What one tanh counts for, and the rest of a stage for each unit.
TANH, REST = 20, 7


def run(quick: bool = False) -> Report:
    device = jax.devices()[0]
    gpu = device.platform == "gpu"
    report = Report(
        "kernel",
        f"x' = W tanh x, {STEPS} steps of {DT}, float32, dense W with |W|_2 = 1, x0 ~ N(0, 1), end "
        f"states only, every JAX solve inside jax.jit. The floor counts 4 (2 n^2 + {TANH + REST} "
        "n) operations a step, those of W x as eight products in bf16 on tensor cores where the "
        "kernel takes them so, and 8 n bytes a trajectory, at the rates of the card's data sheet.",
    )
    if not gpu and not quick:
        report.skipped.append("everything: no GPU here (not measured); run it where jax finds one")
        return report
    peers, report.skipped = present(in_torch)
    report.skipped.append("a program written by hand in CUDA (none was written)")
    engine = jd.Kernel() if gpu else jd.Kernel(16, interpret=True)
    units, batches = ((3, 20), (5,)) if quick else (UNITS, BATCHES)
    steps, rounds = (3, 1) if quick else (STEPS, 7)
    card = next((c for name, c in CARDS.items() if name in device.device_kind), None)
    for n in units:
        rows = []
        for batch in batches:
            timings = race(dict(_cases(n, batch, steps, engine, peers)), rounds)
            floor = None if card is None else _floor(card, n, batch, steps)
            for name, timing in timings.items():
                share = None if floor is None else floor / timing.median
                speed = timing.ratio(timings[KERNEL])
                rows.append([batch, name, *timing_cells(timing), speed, share])
            report.targets += _targets(n, batch, timings, floor)
        columns = ["trajectories", "solver", *TIMING_COLUMNS, "/ kernel", "share of the floor"]
        report.tables.append(Table(f"n = {n}", columns, rows))
    _lorenz(report, engine, quick)
    return report


def _cases(n: int, batch: int, steps: int, engine: jd.Kernel, peers: set) -> Iterator[Any]:
    cell, x0 = problem(n, batch, jnp.float32)
    x0 = jax.block_until_ready(x0)
    yield KERNEL, _simulated(cell, x0, steps, jd.RK4(), engine)
    yield STRANG, _simulated(cell, x0, steps, jd.Strang(), engine)
    yield SCAN, _simulated(cell, x0, steps, jd.RK4(), None)
    if n * batch <= MOST_NUMBERS:
        same = Problem.of(cell, x0, steps * DT)
        yield VMAPPED, in_diffrax.fixed(same, steps, in_diffrax.Tsit5())
        if in_torch in peers:
            yield TORCH, in_torch.rk4(same, steps)


def _simulated(cell, x0, steps: int, solver, engine) -> Callable:
    @jax.jit
    def solve(cell, x0):
        how = {"n_steps": steps, "dt": DT, "solver": solver, "engine": engine, "throw": False}
        return jd.simulate(cell, x0, **how).ys[:, -1]

    return lambda: solve(cell, x0)


def _floor(card: Card, n: int, batch: int, steps: int) -> float:
    """Seconds that RK4 takes at the very least."""
    products, rest = 2 * n**2, (TANH + REST) * n
    if n > 16:
        stage = 8 * products / card.bf16 + rest / card.float32
    else:
        stage = (products + rest) / card.float32
    return max(4 * batch * steps * stage, 8 * n * batch / card.memory)


def _targets(n: int, batch: int, timings: dict[str, Timing], floor: float | None) -> list[Target]:
    kernel, out = timings[KERNEL], []
    where = f"n = {n}, {batch} trajectories"
    if n <= 16 and batch == 100_000:
        ratio = timings[VMAPPED].ratio(kernel)
        out.append(Target(f"diffrax vmapped / kernel, {where}", ratio, 20.0, at_least=True))
    if n == 64 and batch == 10_000:
        ratio = timings[SCAN].ratio(kernel)
        out.append(Target(f"scan / kernel, {where}", ratio, 5.0, at_least=True))
    if batch == 100_000 and floor is not None:
        share = floor / kernel.median
        out.append(Target(f"share of the floor, {where}", share, 0.5, at_least=True))
    return out


def lorenz(t, x, rho):
    a, b, c = x
    return jnp.stack([10.0 * (b - a), a * (rho - c) - b, a * b - 8.0 / 3.0 * c])


def _lorenz(report: Report, engine: jd.Kernel, quick: bool) -> None:
    """A parameter for each trajectory, RK4, end states."""
    batch, steps, rounds = (5, 3, 1) if quick else (LORENZ, LORENZ_STEPS, 11)
    x0 = jr.normal(jr.key(0), (batch, 3), jnp.float32)
    rho = jnp.asarray(np.linspace(0, 21, batch), jnp.float32)

    @jax.jit
    def solve(x0, rho):
        def one(x, rho):
            how = {"n_steps": steps, "dt": 0.001, "engine": engine, "throw": False}
            return jd.simulate(lorenz, x, args=rho, **how).ys[-1]

        return jax.vmap(one)(x0, rho)

    @jax.jit
    def in_plain_diffrax(x0, rho):
        def one(x, rho):
            term, solver = diffrax.ODETerm(lorenz), diffrax.Tsit5()
            times = jnp.zeros((), x.dtype), jnp.asarray(steps * 0.001, x.dtype)
            step = jnp.asarray(0.001, x.dtype)
            return diffrax.diffeqsolve(term, solver, *times, step, x, rho, max_steps=None).ys[-1]

        return jax.vmap(one)(x0, rho)

    cases = {KERNEL: lambda: solve(x0, rho), VMAPPED: lambda: in_plain_diffrax(x0, rho)}
    timings = race(cases, rounds)
    rows = [[name, *timing_cells(t), t.ratio(timings[KERNEL])] for name, t in timings.items()]
    title = f"Lorenz, {batch} parameters, {steps} steps"
    report.tables.append(Table(title, ["solver", *TIMING_COLUMNS, "/ kernel"], rows))
    if not quick:
        what = "milliseconds of Lorenz in the kernel"
        report.targets.append(Target(what, 1e3 * timings[KERNEL].median, LORENZ_MS))
