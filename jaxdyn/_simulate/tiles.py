"""A batch in tiles: so many trajectories at a time that what a step touches stays in cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._cell import AbstractVectorField
from .._solver import AbstractCellSolver
from .._types import is_traced
from .rollout import Rollout, part

# A tile is a multiple of this, for vector instructions.
GRAIN = 16


def tile_size(
    solver: AbstractCellSolver,
    cell: AbstractVectorField,
    x0: Float[Array, "..."],
    share: int | None,
) -> int | None:
    """`solver.tile`, made even, for `x0`, or for parts of `share` trajectories solved at once;
    None where there is but one tile, or no CPU."""
    if x0.ndim == 1 or not _on_one_cpu(x0):
        return None
    batch = x0.shape[0] if share is None else share
    most = solver.tile(cell, x0.dtype.itemsize, shared=share is not None)
    return None if most is None or batch <= most else even(batch, most)


def even(batch: int, most: int) -> int:
    """The size of parts, at most `most` each, in which `batch` trajectories go with least waste."""
    return min(most, -(-batch // -(-batch // most) // GRAIN) * GRAIN)


def _on_one_cpu(x0: Array) -> bool:
    """Of what is traced no more is known than where JAX puts arrays by default."""
    if is_traced(x0):
        return jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return [device.platform for device in x0.devices()] == ["cpu"]


def tiles_of(rollout: Rollout, size: int | None) -> int:
    """The number of tiles of `size` trajectories; None is one of all."""
    return 1 if size is None else -(-rollout.x0.shape[0] // size)


def in_tiles(
    solve: Callable[[Any, Rollout, Array], tuple[Any, PyTree]],
    state: Any,
    rollout: Rollout,
    size: int | None,
) -> tuple[Any, PyTree]:
    """`solve(state, tile, number)` of all tiles, one after the other: the last state, and all
    results, whose leaves lead with the trajectories.

    All tiles have one size, so that one program serves them; the last may overlap the one before.
    """
    if size is None:
        return solve(state, rollout, jnp.asarray(0))
    batch, count = rollout.x0.shape[0], tiles_of(rollout, size)
    starts = np.minimum(size * np.arange(count), batch - size)
    overlap = count * size - batch

    def one(state, xs):
        number, x0, start = xs
        return solve(state, part(rollout, x0, start), number)

    def whole(leaf):
        if not overlap:
            return leaf.reshape(batch, *leaf.shape[2:])
        first = leaf[:-1].reshape(-1, *leaf.shape[2:])
        return jnp.concatenate([first, leaf[-1, overlap:]])

    # Not a slice at `start`: its derivative would go over all of x0 for every tile.
    x0 = rollout.x0[starts[:, None] + np.arange(size)] if overlap else rollout.x0
    xs = jnp.arange(count), x0.reshape(count, size, -1), jnp.asarray(starts)
    state, outs = jax.lax.scan(one, state, xs)
    return state, jax.tree.map(whole, outs)
