"""Seconds against error: fixed-step Taylor and diffrax's adaptive Runge-Kutta methods."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import jaxdyn as jd

from .ensemble import problem
from .report import TIMING_COLUMNS, Report, Table, Target, timing_cells
from .timing import race

X64 = True
T1 = 25.0
# (order, steps): a sweep wide enough to hold the best of each error.
TAYLOR = ((6, 100), (7, 140), (7, 150), (8, 100), (8, 112), (8, 120), (9, 96), (9, 104), (10, 88),
          (10, 96), (12, 100), (12, 150), (12, 160), (14, 100), (14, 116), (16, 100))  # fmt: skip
RUNGE_KUTTA = (
    (diffrax.Tsit5(), (1e-6, 1e-8, 6e-9, 5e-9)),
    (diffrax.Dopri8(), (2e-8, 1e-10, 1e-12, 6e-13, 5e-13)),
)


def run(quick: bool = False) -> Report:
    n, batch, rounds = (4, 8, 3) if quick else (8, 1024, 9)
    cell, x0 = problem(n, batch, jnp.float64)
    W = cell.operator.as_matrix()
    exact, agreement = reference(cell, x0)

    cases: dict[str, Callable] = {}
    for order, steps in TAYLOR[:2] if quick else TAYLOR:
        solver, dt = jd.Taylor(order), T1 / steps
        cases[f"Taylor({order}), {steps} steps"] = lambda solver=solver, dt=dt: jd.simulate(
            cell, x0, t1=T1, dt=dt, solver=solver
        ).ys[:, -1]
    for solver, tolerances in RUNGE_KUTTA:
        for tol in tolerances[:2] if quick else tolerances:
            name = f"diffrax {type(solver).__name__} vmapped, tol {tol:g}"
            cases[name] = lambda solver=solver, tol=tol: adaptive(solver, W, x0, tol)
    timings = race(cases, rounds)
    errors = {
        name: float(jnp.max(jnp.abs(timing.result - exact))) for name, timing in timings.items()
    }

    tables = [
        Table(
            "Work and precision",
            ["solver", *TIMING_COLUMNS, "error"],
            [[name, *timing_cells(t), errors[name]] for name, t in timings.items()],
        )
    ]
    targets, comparisons = [], []
    for bound, peer, want in ((1e-7, "Tsit5", 8.0), (1e-12, "Dopri8", 2.0)):
        ours = fastest(timings, errors, "Taylor", bound)
        theirs = fastest(timings, errors, peer, bound)
        if ours is None or theirs is None:
            continue
        ratio = timings[theirs].ratio(timings[ours])
        comparisons.append([bound, ours, errors[ours], theirs, errors[theirs], ratio])
        targets.append(Target(f"error {bound:g}: {theirs} / {ours}", ratio, want, at_least=True))
    columns = ["error <=", "ours", "its error", "theirs", "its error", "times faster"]
    tables.append(Table("The fastest of each at an error", columns, comparisons))
    return Report(
        "taylor",
        f"x' = W tanh x, n = {n} units, {batch} trajectories, t = {T1:g}, float64, dense W with "
        "|W|_2 = 1, x0 ~ N(0, 1), end state only. error: largest over all trajectories and units, "
        "at the end, against Taylor(24) with 200 steps, which agrees with scipy's DOP853 (rtol = "
        f"atol = 1e-13) to {agreement:.1e} on four trajectories. diffrax: PIDController with rtol "
        "= atol = tol, one step size for each trajectory.",
        tables,
        targets,
    )


def reference(cell, x0) -> tuple[jax.Array, float]:
    """The end states, and how far DOP853 is from them on a few trajectories."""
    from scipy.integrate import solve_ivp

    exact = jd.simulate(cell, x0, t1=T1, dt=T1 / 200, solver=jd.Taylor(24)).ys[:, -1]
    W = np.asarray(cell.operator.as_matrix())
    gap = 0.0
    for i in range(4):
        oracle = solve_ivp(
            lambda t, x: W @ np.tanh(x),
            (0.0, T1),
            np.asarray(x0[i]),
            method="DOP853",
            rtol=1e-13,
            atol=1e-13,
        )
        gap = max(gap, float(np.max(np.abs(oracle.y[:, -1] - np.asarray(exact[i])))))
    return exact, gap


def fastest(timings, errors, kind: str, bound: float) -> str | None:
    """The fastest case of a kind whose error is within `bound`, a tenth of it allowed for."""
    fit = [name for name in timings if kind in name and errors[name] <= 1.1 * bound]
    return min(fit, key=lambda name: timings[name].median, default=None)


@jax.jit(static_argnums=(0, 3))
def adaptive(solver, W, x0, tol):
    def one(x):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, W: W @ jnp.tanh(x)),
            solver,
            0.0,
            T1,
            0.1,
            x,
            args=W,
            stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
            max_steps=100_000,
        ).ys[-1]

    return jax.vmap(one)(x0)
