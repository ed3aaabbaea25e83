"""A batch shared among the cores of a CPU."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import is_inside_jit, is_traced
from .checks import is_count
from .rollout import Rollout, part
from .scan import integrate
from .schedule import Rows
from .tiles import tile_size

INSIDE = (
    "`engine=jaxdyn.Threads` cannot run inside jit, grad or vmap, nor with functions that close "
    "over what those trace; leave it out there."
)


class Threads(eqx.Module):
    """Shares the trajectories of a batch among threads, one program each.

    XLA runs a solve of small steps on one core: a single step has too little work to be worth
    sharing. Trajectories never talk to each other, so whole solves of a part of the batch each keep
    all cores busy (benchmarks/precision.py). For `jaxdyn.simulate(..., engine=)` with a batch on
    CPU, outside of jit, grad and vmap. Of JAX's context managers only `jax.enable_x64` reaches the
    threads.

    **Arguments:**

    - `workers`: the number of threads, an integer >= 1; None takes one for each core.

    **Raises:** TypeError or ValueError when `workers` is no such number.
    """

    workers: int | None = eqx.field(static=True)

    def __init__(self, workers: int | None = None):
        if workers is not None and not is_count(workers):
            raise TypeError(f"`workers` must be an integer >= 1 or None, got {workers!r}.")
        if workers is not None and workers < 1:
            raise ValueError(f"`workers` must be >= 1, got {workers}; None takes every core.")
        self.workers = workers

    def count(self) -> int:
        if self.workers is not None:
            return self.workers
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_threads(x0: Array, adjoint: Any, *known: Any) -> None:
    """Refuses what threads cannot do."""
    if is_inside_jit() or is_traced((x0, known)):
        raise ValueError(INSIDE)
    if adjoint is not None:
        raise ValueError("`engine=jaxdyn.Threads` takes no gradients; leave `adjoint` out.")
    if any(device.platform != "cpu" for device in x0.devices()):
        raise ValueError(
            "`engine=jaxdyn.Threads` shares a batch among the cores of a CPU, and `x0` is on "
            "another device; leave it out."
        )


def integrate_in_threads(rollout: Rollout, rows: Rows, engine: Threads) -> Any:
    """As `integrate`, of a batch in as many parts as there are threads.

    All parts have one size, so that one program serves all; the last overlaps the one before it.
    """
    batch = rollout.x0.shape[0]
    size = -(-batch // engine.count())
    share = None if size == batch else size
    tile = tile_size(rollout.solver, rollout.cell, rollout.x0, share)
    if share is None:
        return integrate(rollout, rows, None, tile)
    # Equinox's own jit would take all apart in every thread, at half a millisecond each.
    leaves, structure = jax.tree.flatten((rollout, rows))
    rest = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    arrays = [leaf if eqx.is_array(leaf) else None for leaf in leaves]

    def solve(start: int) -> Any:
        return _part(arrays, np.int32(start), structure, rest, size, tile)

    starts = [min(start, batch - size) for start in range(0, batch, size)]
    try:
        parts = on_threads(engine.count(), solve, starts)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(INSIDE) from error
    return _joined(parts, len(starts) * size - batch)


def on_threads(workers: int, work: Callable[[Any], Any], things: list) -> list:
    """`work` done on every one of `things`, on `workers` threads."""
    x64 = jax.config.jax_enable_x64  # what a thread sees of it is its own

    def there(thing: Any) -> Any:
        with jax.enable_x64(x64):
            return jax.block_until_ready(work(thing))

    return list(_pool(workers).map(there, things))


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "jaxdyn")


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _part(arrays, start, structure, rest, size: int, tile: int | None) -> Any:
    """The solve of trajectories `start`, ..., `start + size - 1`."""
    leaves = [known if leaf is None else leaf for leaf, known in zip(arrays, rest, strict=True)]
    rollout, rows = jax.tree.unflatten(structure, leaves)
    x0 = jax.lax.dynamic_slice_in_dim(rollout.x0, start, size)
    return integrate(part(rollout, x0, start.astype(int)), rows, None, tile)


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts: list, overlap: int) -> Any:
    """The parts one after the other; the last without its first `overlap` trajectories."""
    last = jax.tree.map(lambda leaf: leaf[overlap:], parts[-1])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts[:-1], last)
