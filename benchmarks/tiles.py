"""How many trajectories to solve at a time: TILE, CACHE and MAX_COLUMNS of the solvers."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxdyn as jd
from jaxdyn._cell import SharedInput
from jaxdyn._simulate.rollout import Rollout
from jaxdyn._simulate.scan import integrate
from jaxdyn._simulate.schedule import rows

from .ensemble import DT, problem
from .report import Report, Table
from .timing import race

X64 = True
TILES = (None, 32, 64, 128)
SOLVERS = {
    "Strang": (jd.Strang(), 100),
    "RK4": (jd.RK4(), 50),
    "Taylor(6)": (jd.Taylor(6), 30),
    "Taylor(16)": (jd.Taylor(16), 10),
}
# (units, trajectories)
SIZES = ((2, 8192), (8, 2048), (16, 1024), (32, 1024), (64, 1024))


def run(quick: bool = False) -> Report:
    rounds = 2 if quick else 5
    report = Report(
        "tiles",
        "x' = W tanh x, dense W; seconds of a solve in tiles of so many trajectories, each taken "
        "through the whole solve, relative to all of them at once. One program, outside of "
        "jaxdyn.Threads. chosen: what `simulate` does.",
    )
    for dtype in (jnp.float32, jnp.float64):
        table = []
        for n, batch in ((2, 64),) if quick else SIZES:
            cell, x0 = problem(n, batch, dtype)
            for name, (solver, steps) in SOLVERS.items():
                tiles = [tile for tile in TILES if tile is None or tile < batch]
                cases: dict[Any, Any] = {
                    tile: case(cell, x0, solver, steps, tile) for tile in tiles
                }
                timings = race(cases, rounds)
                ratios = {tile: timings[tile].ratio(timings[None]) for tile in tiles[1:]}
                chosen = solver.tile(cell, x0.dtype.itemsize, shared=False)
                cells = [ratios.get(tile) for tile in TILES[1:]]
                table.append([n, name, timings[None].median, *cells, str(chosen)])
        columns = ["n", "solver", "seconds, all at once", *map(str, TILES[1:]), "chosen"]
        report.tables.append(Table(jnp.dtype(dtype).name, columns, table))
    return report


def case(cell, x0, solver, steps, tile):
    t0, dt = jnp.zeros((), x0.dtype), jnp.asarray(DT, x0.dtype)
    rollout = Rollout(solver, cell, SharedInput(None), x0, t0, dt, None)
    when = rows(np.array([steps]), np.zeros(1), x0.dtype)
    return lambda: integrate(rollout, when, None, tile)[0]
