"""What the measurements share: states of a given energy, sampled orbits, returns, tangents."""

from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell
from .._simulate import simulate
from .._skew import DenseSkew
from .._solver import AbstractCellSolver

LN2 = float(np.log(2.0))
BLOCK = 8192


@eqx.filter_jit
def at_energy(
    cell: AbstractCell, directions: Float[Array, "b n"], energy: Float[Array, ""]
) -> Float[Array, "b n"]:
    """States of one energy along given directions, by bisection on the length.

    Needs an energy that grows along every direction, as those of confining activations do.
    """
    measure = jax.vmap(cell.energy)

    def halve(_, between):
        low, high = between
        middle = 0.5 * (low + high)
        below = measure(middle[:, None] * directions) < energy
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    def double(high):
        return jnp.where(measure(high[:, None] * directions) < energy, 2 * high, high)

    def short(high):
        enough = measure(high[:, None] * directions) >= energy
        return ~jnp.all(enough) & jnp.all(high < 1e30)

    ones = jnp.ones_like(directions[:, 0])
    high = jax.lax.while_loop(short, double, ones)
    low, high = jax.lax.fori_loop(0, 2 * jnp.finfo(ones.dtype).nmant, halve, (0 * ones, high))
    return (0.5 * (low + high))[:, None] * directions


def tanh_states(n: int, count: int, energy: float, seed: int) -> np.ndarray:
    """States of one energy in random directions, for tanh: shape (count, n)."""
    directions = np.random.default_rng(seed).normal(size=(count, n))
    low, high = np.zeros((count, 1)), np.full((count, 1), 2.0 + 2 * energy)
    for _ in range(80):
        middle = 0.5 * (low + high)
        x = middle * directions
        below = np.sum(np.logaddexp(x, -x) - LN2, axis=1, keepdims=True) < energy
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high) * directions


def random_skew(n: int, seed: int, norm: float = 1.0) -> DenseSkew:
    """A dense Gaussian W of a given spectral norm, drawn without compiling anything."""
    lower = np.tril(np.random.default_rng(seed).normal(size=(n, n)), -1)
    w = lower - lower.T
    return DenseSkew.from_matrix(w * (norm / np.linalg.norm(w, 2)))


def record(
    cell: AbstractCell,
    x0: Array | np.ndarray,
    t1: float,
    dt: float,
    solver: diffrax.AbstractSolver,
    every: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Times (t,) and states (b, t, n) at the start and after every so many steps.

    An orbit that diverges is left to the checks, which no NaN passes.
    """
    saveat = diffrax.SaveAt(steps=every)
    sol = simulate(cell, x0, t1=t1, dt=dt, solver=solver, saveat=saveat, throw=False)
    ts = np.concatenate([[0.0], np.asarray(sol.ts)])
    return ts, np.concatenate([np.asarray(x0)[:, None], np.asarray(sol.ys)], axis=1)


@eqx.filter_jit
def _energies(cell: AbstractCell, x: Float[Array, "b n"]) -> Float[Array, " b"]:
    return jax.vmap(cell.energy)(x)


def energies(cell: AbstractCell, ys: np.ndarray) -> np.ndarray:
    """H of states (..., n), in blocks of one size, so that it compiles once for each cell."""
    flat = ys.reshape(-1, ys.shape[-1])
    blocks = -(-len(flat) // BLOCK)
    padded = np.concatenate([flat, np.zeros((blocks * BLOCK - len(flat), flat.shape[1]))])
    h = [np.asarray(_energies(cell, jnp.asarray(x))) for x in np.split(padded, blocks)]
    return np.concatenate(h)[: len(flat)].reshape(ys.shape[:-1])


def first_return(
    ts: np.ndarray, x: np.ndarray, normal: np.ndarray, *, points: int = 12
) -> tuple[float, np.ndarray]:
    """When and where an orbit (t, n) next crosses the plane through x[0] in the sense of `normal`.

    The crossing is located on the polynomial through `points` samples, equally spaced in time.
    Returns (nan, nan) for an orbit that does not come back.
    """
    height = (x - x[0]) @ normal
    up = np.flatnonzero((height[1:-1] < 0) & (height[2:] >= 0)) + 1
    if up.size == 0:
        return np.nan, np.full(x.shape[1], np.nan)
    start = int(np.clip(up[0] - points // 2 + 1, 0, len(ts) - points))
    nodes = np.arange(points, dtype=float)
    rows = slice(start, start + points)
    low = float(up[0] - start)
    high = low + 1
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _lagrange(nodes, middle) @ height[rows] < 0:
            low = middle
        else:
            high = middle
    weights = _lagrange(nodes, 0.5 * (low + high))
    return float(weights @ ts[rows]), weights @ x[rows]


def _lagrange(nodes: np.ndarray, at: float) -> np.ndarray:
    """The values at `at` of the Lagrange polynomials of `nodes`."""
    ratio = (at - nodes)[None, :] / np.where(
        np.eye(nodes.size, dtype=bool), 1.0, nodes[:, None] - nodes[None, :]
    )
    return np.prod(np.where(np.eye(nodes.size, dtype=bool), 1.0, ratio), axis=1)


ROWS = 250


@eqx.filter_jit
def _march(solver, cell, x0, dt, stride, rows):
    prepared = solver.prepare(cell, dt)
    zero = jnp.zeros((), x0.dtype)

    def step(_, x):
        return jax.vmap(
            lambda x: solver.advance(prepared, zero, dt, x, None), in_axes=1, out_axes=1
        )(x)

    def row(i, carry):
        x, saved = carry
        x = jax.lax.fori_loop(0, stride, step, x)
        return x, saved.at[i].set(x)

    saved = jnp.zeros((ROWS, *x0.T.shape), x0.dtype)
    _, saved = jax.lax.fori_loop(0, rows, row, (x0.T, saved))
    return jnp.transpose(saved, (2, 0, 1))


def march(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x0: np.ndarray,
    dt: float,
    stride: int,
    rows: int = ROWS,
) -> np.ndarray:
    """States (b, rows, n) after stride, 2 stride, ... steps of `solver.advance`.

    Step, stride and rows (at most ROWS) are arrays inside, so that one compilation serves every
    step size and every length, which `simulate` cannot do.
    """
    counts = jnp.asarray(stride), jnp.asarray(rows)
    return np.asarray(_march(solver, cell, jnp.asarray(x0), jnp.asarray(dt), *counts))[:, :rows]


@eqx.filter_jit
def push(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x: Float[Array, "b n"],
    v: Float[Array, "b n"],
    dt: Float[Array, ""],
    n_steps: int,
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """States and tangent vectors after `n_steps` steps: the derivative of `simulate` along v."""

    def flow(x):
        sol = simulate(cell, x, n_steps=n_steps, dt=dt, solver=solver, throw=False)
        assert sol.ys is not None
        return sol.ys[:, 0]

    return jax.jvp(flow, (x,), (v,))


def tangent_growth(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x0: np.ndarray,
    dt: float,
    n_steps: int,
    chunks: int,
    seed: int = 0,
) -> np.ndarray:
    """log |v| of a tangent vector after each chunk of `n_steps` steps: (b, chunks + 1), from 0."""
    v = np.random.default_rng(seed).normal(size=x0.shape)
    x, v = jnp.asarray(x0), v / np.linalg.norm(v, axis=1, keepdims=True)
    logs = [np.zeros(len(v))]
    for _ in range(chunks):
        x, v = push(solver, cell, x, jnp.asarray(v), jnp.asarray(dt), n_steps)
        length = np.linalg.norm(np.asarray(v), axis=1, keepdims=True)
        v = np.asarray(v) / length
        logs.append(logs[-1] + np.log(length[:, 0]))
    return np.stack(logs, axis=1)


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """The slope of the least-squares line."""
    return float(np.polyfit(np.asarray(x), np.asarray(y), 1)[0])
