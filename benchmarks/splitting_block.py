"""The block size of the dense sweep, and when to unroll it: constants of _solver/blocks.py."""

import jax
import jax.numpy as jnp

import jaxdyn as jd
from jaxdyn._cell import SharedInput
from jaxdyn._solver import blocks as sweep

from .ensemble import DT, bare_rk4, problem
from .report import TIMING_COLUMNS, Report, Table, timing_cells
from .timing import race

X64 = False
# (units, steps, block sizes, most blocks unrolled)
SETTINGS = ((64, 100, (1, 4, 8, 16, 32), (64, 0)), (256, 10, (4, 8, 16, 32), (32, 0)))


def run(quick: bool = False) -> Report:
    batch, rounds = (32, 3) if quick else (1024, 7)
    report = Report(
        "splitting_block",
        f"x' = W tanh x, {batch} trajectories, float32, dense W; Strang with blocks of different "
        "size, unrolled up to the number of blocks given (0: always a loop over blocks).",
    )
    for n, steps, blocks, limits in SETTINGS[:1] if quick else SETTINGS:
        cell, x0 = problem(n, batch, jnp.float32)
        W = cell.operator.as_matrix()
        cases = {"bare scan RK4": lambda W=W, x0=x0, steps=steps: bare_rk4(W, x0, steps)}
        for limit in limits:
            for block in blocks:
                if n // block <= limit or limit == 0:
                    name = f"block {block}, {'unrolled' if limit else 'loop'}"
                    cases[name] = _strang(cell, x0, steps, block, limit)
        timings = race(cases, rounds)
        bare = timings["bare scan RK4"]
        rows = [[name, *timing_cells(t), t.ratio(bare)] for name, t in timings.items()]
        columns = ["case", *TIMING_COLUMNS, "/ bare scan RK4"]
        report.tables.append(Table(f"n = {n}, {steps} steps", columns, rows))
    return report


def _strang(cell, x0, steps, block, limit):
    """Strang with other constants, which are read while it is traced."""
    solver = jd.Strang()

    @jax.jit
    def integrate(cell, x):
        t, dt = jnp.zeros((), x.dtype), jnp.asarray(DT, x.dtype)
        saved = sweep.BLOCK, sweep.MAX_UNROLLED_BLOCKS
        sweep.BLOCK, sweep.MAX_UNROLLED_BLOCKS = block, limit
        try:
            prepared = solver.prepare(cell, dt)

            def step(x, _):
                return solver.advance_batch(prepared, t, dt, x, SharedInput(None)), None

            return jax.lax.scan(step, x.T, None, length=steps)[0].T
        finally:
            sweep.BLOCK, sweep.MAX_UNROLLED_BLOCKS = saved

    return lambda: integrate(cell, x0)
