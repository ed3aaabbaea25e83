"""Many trajectories with a fixed step: `simulate` against every peer with the same steps."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd
from jaxdyn import plot

from .peers import Problem, in_c, in_diffrax, in_numba, in_torch, present
from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .timing import Timing, race

X64 = False
DT = 0.05
UNITS, BATCHES = (2, 8, 64, 256), (1, 64, 1024, 16384)
# A cell of the grid takes about this many multiplications a stage, in 10 to 500 steps.
WORK = 8e8
BARE, RK4 = "bare lax.scan RK4", "simulate RK4"
STRANG, ON_THREADS = "simulate Strang", "simulate Strang, threads"
VMAPPED, IN_STATE = "diffrax Tsit5, vmapped", "diffrax Tsit5, batch in the state"
# Colour and marker: our own in blue and green, what is written by hand in black and grey.
STYLES = {
    STRANG: (plot.BLUE, "o"),
    ON_THREADS: (plot.BLUE, "s"),
    RK4: (plot.SKY, "o"),
    "simulate Taylor(4)": (plot.GREEN, "o"),
    BARE: (plot.GREY, "s"),
    VMAPPED: (plot.VERMILLION, "^"),
    IN_STATE: (plot.ORANGE, "^"),
    "torchdiffeq rk4": (plot.PURPLE, "v"),
    "torchdiffeq rk4, one thread": (plot.PURPLE, "P"),
    "numba RK4": (plot.GREY, "D"),
    "C RK4": (plot.BLACK, "x"),
    "C Strang": (plot.BLACK, "+"),
}


def run(quick: bool = False) -> Report:
    peers, skipped = present(in_torch, in_numba, in_c)
    report = headline(peers, quick)
    report.skipped = skipped
    units, batches = ((2, 16), (1, 32)) if quick else (UNITS, BATCHES)
    grid = {n: {b: grid_cell(n, b, peers, quick) for b in batches} for n in units}
    for n, cells in grid.items():
        report.tables.append(throughput_table(n, cells))
    report.draw, report.size = lambda figure: draw(figure, grid), (8.0, 7.0)
    return report


def headline(peers: set, quick: bool) -> Report:
    """One cell of the grid with more solvers, more rounds and the errors."""
    n, batch, steps, rounds = (16, 32, 20, 3) if quick else (64, 1024, 500, 11)
    cell, x0 = problem(n, batch, jnp.float32)
    cases = dict(all_cases(cell, x0, steps, peers))
    cases["simulate Strang, outside jit"] = lambda: jd.simulate(cell, x0, n_steps=steps, dt=DT).ys
    cases["simulate BlanesMoan4"] = simulated(cell, x0, steps, jd.BlanesMoan4())
    cases["simulate Taylor(8)"] = simulated(cell, x0, steps, jd.Taylor(8))
    timings = race(cases, rounds)
    with jax.enable_x64(True):
        exact = simulated(cell, np.asarray(x0, np.float64), 2 * steps, jd.Taylor(16), DT / 2)()
    bare, tsit5 = timings[BARE], timings[VMAPPED]
    rows = []
    for name, timing in timings.items():
        end = np.reshape(timing.result, exact.shape)
        error = float(np.max(np.abs(end - np.asarray(exact))))
        rows.append([name, *timing_cells(timing), timing.ratio(bare), tsit5.ratio(timing), error])
    columns = ["solver", *TIMING_COLUMNS, "/ bare scan", "times faster than Tsit5", "error"]
    return Report(
        "ensemble",
        f"x' = W tanh x, steps of {DT}, float32, dense W with |W|_2 = 1, x0 ~ N(0, 1), end state "
        "only; every JAX solve inside jax.jit but where said. "
        f"Ensemble: n = {n} units, {batch} trajectories, {steps} steps; error: largest, at "
        "the end, against Taylor(16) in float64 at half the step. Throughput: seconds, and in "
        "brackets how many times those of our fastest; the steps of a cell are the same for all "
        "its cases. All that is set up once (compilation, the C library, thread pools) is outside "
        "the seconds. The C program works on tiles of 64 trajectories, or of 16 when there are no "
        "more: one trajectory takes as long as 16.",
        [Table("Ensemble", columns, rows)],
        [
            Target("simulate RK4 / bare scan RK4", timings[RK4].ratio(bare), 1.3),
            Target(
                "diffrax Tsit5 vmapped / simulate RK4",
                tsit5.ratio(timings[RK4]),
                3.0,
                at_least=True,
            ),
            Target("simulate Strang / simulate RK4", timings[STRANG].ratio(timings[RK4]), 1.0),
        ],
    )


def problem(n: int, batch: int, dtype) -> tuple[jd.PoissonCell, jax.Array]:
    operator = jd.DenseSkew.random(n, key=jr.key(0), dtype=dtype)
    return jd.PoissonCell(operator, jd.Tanh()), jr.normal(jr.key(1), (batch, n), dtype)


def simulated(cell, x0, steps: int, solver, dt: float = DT) -> Callable:
    """`simulate` inside `jax.jit`, as the peers' solves are."""
    return lambda: _simulated(cell, x0, steps, dt, solver)


def on_threads(cell, x0, steps: int) -> Callable:
    """Outside of jit, which threads are not for."""
    return lambda: jd.simulate(cell, x0, n_steps=steps, dt=DT, engine=jd.Threads()).ys[:, -1]


@jax.jit(static_argnums=2)
def _simulated(cell, x0, steps, dt, solver):
    return jd.simulate(cell, x0, n_steps=steps, dt=dt, solver=solver).ys[:, -1]


def all_cases(cell, x0, steps: int, peers: set) -> Iterator[tuple[str, Callable]]:
    W, same = cell.operator.as_matrix(), Problem.of(cell, x0, steps * DT)
    yield STRANG, simulated(cell, x0, steps, jd.Strang())
    yield ON_THREADS, on_threads(cell, x0, steps)
    yield RK4, simulated(cell, x0, steps, jd.RK4())
    yield "simulate Taylor(4)", simulated(cell, x0, steps, jd.Taylor(4))
    yield BARE, lambda: bare_rk4(W, x0, steps)
    yield VMAPPED, in_diffrax.fixed(same, steps, in_diffrax.Tsit5())
    yield IN_STATE, in_diffrax.batched(same, steps, in_diffrax.Tsit5())
    if in_torch in peers:
        yield "torchdiffeq rk4", in_torch.rk4(same, steps)
        yield "torchdiffeq rk4, one thread", in_torch.rk4(same, steps, threads=1)
    if in_numba in peers:
        yield "numba RK4", in_numba.rk4(same, steps)
    if in_c in peers:
        yield "C RK4", in_c.rk4(same, steps)
        yield "C Strang", in_c.strang(same, steps)


@jax.jit(static_argnums=2)
def bare_rk4(W, x0, steps):
    """What a careful user would write by hand, the batch in the minor axis."""

    def step(x, _):
        k1 = W @ jnp.tanh(x)
        k2 = W @ jnp.tanh(x + DT / 2 * k1)
        k3 = W @ jnp.tanh(x + DT / 2 * k2)
        k4 = W @ jnp.tanh(x + DT * k3)
        return x + DT / 6 * (k1 + 2 * (k2 + k3) + k4), None

    return jax.lax.scan(step, x0.T, None, length=steps)[0].T


def steps_of(n: int, batch: int) -> int:
    # A tanh costs about as much as 30 multiplications.
    return int(min(500, max(10, WORK / (batch * n * (n + 30)))))


def grid_cell(n: int, batch: int, peers: set, quick: bool) -> tuple[int, dict[str, Timing]]:
    """The steps taken, and the timing of every case."""
    steps = 20 if quick else steps_of(n, batch)
    cases = dict(all_cases(*problem(n, batch, jnp.float32), steps, peers))
    return steps, race(cases, 3 if quick else 5)


def throughput_table(n: int, cells: dict[int, tuple[int, dict[str, Timing]]]) -> Table:
    rows = []
    for name in next(iter(cells.values()))[1]:
        row = [name]
        for _, timings in cells.values():
            ours = [timing for case, timing in timings.items() if case.startswith("simulate")]
            best = min(ours, key=lambda timing: timing.median)
            row.append(f"{timings[name].median:.3g} ({timings[name].ratio(best):.2g})")
        rows.append(row)
    columns = [f"{batch} x {steps} steps" for batch, (steps, _) in cells.items()]
    return Table(f"Throughput, n = {n}", ["solver", *columns], rows)


def draw(figure, grid: dict[int, dict[int, tuple[int, dict[str, Timing]]]]) -> None:
    """Trajectory-steps a second against the batch, one panel for each n."""
    axes = figure.subplots(-(-len(grid) // 2), 2, sharex=True).ravel()
    for ax, (n, cells) in zip(axes, grid.items(), strict=False):
        for name in next(iter(cells.values()))[1]:
            color, marker = STYLES[name]
            rates = [b * steps / timings[name].median for b, (steps, timings) in cells.items()]
            ours = name.startswith("simulate")
            ax.loglog(
                list(cells),
                rates,
                color=color,
                marker=marker,
                markersize=5,
                linewidth=2.0 if ours else 1.0,
                zorder=3 if ours else 2,
                label=name,
            )
        ax.set_title(f"n = {n}")
        ax.set_xticks(list(cells), [f"{b:,}" for b in cells])
        ax.minorticks_off()
        ax.grid(axis="y", color=plot.GREY, alpha=0.25, linewidth=0.6)
    for ax in axes[-2:]:
        ax.set_xlabel("trajectories")
    figure.supylabel("trajectory-steps per second", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
