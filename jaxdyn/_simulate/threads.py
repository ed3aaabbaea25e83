"""A batch shared among the cores of a CPU."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._cell import AbstractInputs
from .._types import Args, is_traced
from .checks import is_count
from .scan import Rollout, Saving, integrate
from .schedule import Rows


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
    # Inside jit even a constant is traced.
    if is_traced((x0, known, jnp.zeros(()))):
        raise ValueError(
            "`engine=jaxdyn.Threads` cannot run inside jit, grad or vmap; leave it out there."
        )
    if adjoint is not None:
        raise ValueError("`engine=jaxdyn.Threads` takes no gradients; leave `adjoint` out.")
    if any(device.platform != "cpu" for device in x0.devices()):
        raise ValueError(
            "`engine=jaxdyn.Threads` shares a batch among the cores of a CPU, and `x0` is on "
            "another device; leave it out."
        )


class _From(AbstractInputs):
    """The inputs of trajectories from number `start` on."""

    u: Args
    inputs: AbstractInputs
    start: Array

    def __call__(self, i: Array | int) -> Args:
        return self.inputs(self.start + i)


def integrate_in_threads(rollout: Rollout, rows: Rows, engine: Threads) -> Any:
    """As `integrate`, with the batch in as many parts as there are threads.

    All parts have one size, so that one program serves all; the last overlaps the one before it.
    """
    batch = rollout.x0.shape[0] if rollout.x0.ndim == 2 else 1
    size = -(-batch // engine.count())
    if size == batch:
        return integrate(rollout, rows, None)
    starts = [min(start, batch - size) for start in range(0, batch, size)]
    x64 = jax.config.jax_enable_x64  # what a thread sees of it is its own

    def solve(start: int) -> Any:
        with jax.enable_x64(x64):
            return jax.block_until_ready(_part(rollout, rows, jnp.asarray(start), size))

    with ThreadPoolExecutor(len(starts) - 1) as pool:
        others = [pool.submit(solve, start) for start in starts[1:]]
        parts = [solve(starts[0]), *(other.result() for other in others)]
    return _joined(parts, len(starts) * size - batch)


@eqx.filter_jit
def _part(rollout: Rollout, rows: Rows, start: Array, size: int) -> Any:
    """The solve of trajectories `start`, ..., `start + size - 1`."""
    inputs = _From(None, rollout.inputs, start)
    x0 = jax.lax.dynamic_slice_in_dim(rollout.x0, start, size)
    part = eqx.tree_at(lambda r: (r.x0, r.inputs), rollout, (x0, inputs))
    if isinstance(part.fn, Saving):
        part = eqx.tree_at(lambda r: r.fn.inputs, part, inputs)
    return integrate(part, rows, None)


@eqx.filter_jit
def _joined(parts: list, overlap: int) -> Any:
    """The parts one after the other; the last without its first `overlap` trajectories."""
    last = jax.tree.map(lambda leaf: leaf[overlap:], parts[-1])
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts[:-1], last)
