"""Many trajectories with a fixed step: `simulate` against a bare scan and against diffrax."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr

import jaxdyn as jd

from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .timing import race

X64 = False
DT = 0.05


def run(quick: bool = False) -> Report:
    n, batch, steps, rounds = (16, 32, 20, 3) if quick else (64, 1024, 500, 11)
    cell, x0 = problem(n, batch, jnp.float32)
    W = cell.operator.as_matrix()
    t1 = steps * DT

    def ours(solver) -> Callable:
        return lambda: jd.simulate(cell, x0, t1=t1, dt=DT, solver=solver).ys

    cases = {
        "bare lax.scan RK4": lambda: bare_rk4(W, x0, steps),
        "simulate RK4": ours(jd.RK4()),
        "simulate Strang": ours(jd.Strang()),
        "simulate BlanesMoan4": ours(jd.BlanesMoan4()),
        "simulate Taylor(4)": ours(jd.Taylor(4)),
        "simulate Taylor(6)": ours(jd.Taylor(6)),
        "simulate Taylor(8)": ours(jd.Taylor(8)),
        "diffrax Tsit5, vmapped": lambda: vmapped_tsit5(W, x0, t1),
        "diffrax Tsit5, batch in the state": lambda: batched_tsit5(W, x0, t1),
    }
    timings = race(cases, rounds)
    exact = jd.simulate(cell, x0, t1=t1, dt=DT / 4, solver=jd.Taylor(8)).ys[:, -1]
    bare, tsit5 = timings["bare lax.scan RK4"], timings["diffrax Tsit5, vmapped"]
    rows = []
    for name, timing in timings.items():
        end = timing.result.reshape(batch, -1, n)[:, -1]
        error = float(jnp.max(jnp.abs(end - exact)))
        rows.append([name, *timing_cells(timing), timing.ratio(bare), tsit5.ratio(timing), error])
    columns = ["solver", *TIMING_COLUMNS, "/ bare scan", "times faster than Tsit5", "error"]
    rk4, strang = timings["simulate RK4"], timings["simulate Strang"]
    return Report(
        "ensemble",
        f"x' = W tanh x, n = {n} units, {batch} trajectories, {steps} steps of {DT}, float32, "
        "dense W with |W|_2 = 1, x0 ~ N(0, 1), end state only. error: largest, at the end, against "
        "Taylor(8) at a quarter of the step (also float32).",
        [Table("Ensemble", columns, rows)],
        [
            Target("simulate RK4 / bare scan RK4", rk4.ratio(bare), 1.3),
            Target("diffrax Tsit5 vmapped / simulate RK4", tsit5.ratio(rk4), 3.0, at_least=True),
            Target("simulate Strang / simulate RK4", strang.ratio(rk4), 1.0),
        ],
    )


def problem(n: int, batch: int, dtype) -> tuple[jd.PoissonCell, jax.Array]:
    operator = jd.DenseSkew.random(n, key=jr.key(0), dtype=dtype)
    return jd.PoissonCell(operator, jd.Tanh()), jr.normal(jr.key(1), (batch, n), dtype)


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


def _tsit5(field, x, W, t1):
    return diffrax.diffeqsolve(diffrax.ODETerm(field), diffrax.Tsit5(), 0.0, t1, DT, x, args=W).ys[
        -1
    ]


@jax.jit
def vmapped_tsit5(W, x0, t1):
    return jax.vmap(lambda x: _tsit5(lambda t, x, W: W @ jnp.tanh(x), x, W, t1))(x0)


@jax.jit
def batched_tsit5(W, x0, t1):
    return _tsit5(lambda t, x, W: W @ jnp.tanh(x), x0.T, W, t1).T
