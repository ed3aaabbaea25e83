"""What is done with a chunk of trajectories: one program, tile after tile, on all lanes there are.

A lane is a device of a mesh, or a thread of a CPU. The size of a tile depends on the chunk only, so
that on CPUs a trajectory has the same numbers, to the last bit, however many lanes there are.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from .._cell import AbstractCell
from .._simulate import Threads, simulate
from .._simulate.sharded import tile_on
from .._simulate.threads import on_threads
from .._simulate.tiles import GRAIN
from .._solver import AbstractCellSolver
from .._types import Args
from .members import Parameters, made
from .reductions import Trajectory

Kept = dict[str, dict[str, Array]]
"""What each reduction, by its name, returned, by its parts: "" where it is but one array."""

# Bytes that the samples of a tile may take: about what stays in a cache, and what a GPU spares.
SAMPLES_ON_CPU, SAMPLES_ELSEWHERE = 2**26, 2**31


class Job(eqx.Module):
    """What is done with each member of an ensemble.

    `cell` is that of all, or makes each one's of its parameters. `keep` has the reductions.
    """

    cell: AbstractCell | Callable[..., AbstractCell]
    args: Args
    solver: diffrax.AbstractSolver
    keep: dict[str, Callable[[Trajectory], Any]]
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    n_steps: int = eqx.field(static=True)
    every: int = eqx.field(static=True)

    @property
    def times(self) -> Float[np.ndarray, " t"]:
        """Of the samples."""
        steps = np.arange(self.every, self.n_steps, self.every)
        return np.append(self.t0 + steps * math.copysign(self.dt, self.t1 - self.t0), self.t1)

    def solve(self, cell: AbstractCell, x0: Float[Array, "*b n"]) -> tuple[Array, Array]:
        """The samples (*b, t, n), and which trajectories failed."""
        ours = isinstance(self.solver, AbstractCellSolver)
        if ours and not isinstance(self.solver, diffrax.AbstractWrappedSolver):
            saveat = diffrax.SaveAt(steps=self.every, t1=True)
        else:
            saveat = diffrax.SaveAt(ts=self.times.tolist())
        how: Any = {"t0": self.t0, "t1": self.t1, "dt": self.dt, "args": self.args}
        sol = simulate(cell, x0, solver=self.solver, saveat=saveat, throw=False, **how)
        result: Any = sol.result
        states: Any = sol.ys
        return states, result != diffrax.RESULTS.successful

    def reduce(self, cell: AbstractCell, x0: Array, states: Array) -> Kept:
        times = jnp.asarray(self.times, x0.dtype)
        how: Any = {"t0": self.t0, "t1": self.t1, "dt": self.dt}
        trajectory = Trajectory(cell, x0, times, states, self.args, self.solver, **how)
        kept = {}
        for name, reduction in self.keep.items():
            try:
                found = reduction(trajectory)
                found = found if isinstance(found, dict) else {"": found}
                kept[name] = {part: jnp.asarray(value) for part, value in found.items()}
            except Exception as error:
                error.add_note(f'This was `keep["{name}"]`, {reduction!r}.')
                raise
        return kept

    def one(self, x0: Array, parameters: Parameters) -> tuple[Kept, Array]:
        cell = made(self.cell, parameters)
        states, failed = self.solve(cell, x0)
        return self.reduce(cell, x0, states), failed

    def tile(self, x0: Array, parameters: Parameters) -> tuple[Kept, Array]:
        """Of some members (k, n): what is kept of each, and which failed."""
        if not isinstance(self.cell, AbstractCell):
            return jax.vmap(self.one)(x0, parameters)
        cell = self.cell
        states, failed = self.solve(cell, x0)
        return jax.vmap(lambda x, y: self.reduce(cell, x, y))(x0, states), failed


def named(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By the names of variables: NAME, or NAME_PART of a dict."""
    return {
        f"{name}_{part}" if part else name: value
        for name, parts in kept.items()
        for part, value in parts.items()
    }


def _in_tiles(job: Job, x0: Array, parameters: Parameters, tile: int | None) -> Any:
    if tile is None:
        return job.tile(x0, parameters)
    apart = jax.tree.map(lambda leaf: leaf.reshape(-1, tile, *leaf.shape[1:]), (x0, parameters))
    found = jax.lax.map(lambda xs: job.tile(*xs), apart)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


@eqx.filter_jit
def _on_thread(job: Job, x0: Array, parameters: Parameters, tile: int | None) -> Any:
    return _in_tiles(job, x0, parameters, tile)


@eqx.filter_jit
def _on_mesh(job: Job, x0: Array, parameters: Parameters, tile: int | None, mesh: Mesh) -> Any:
    arrays, static = eqx.partition(job, eqx.is_array)

    def lane(arrays, x0, parameters):
        return _in_tiles(eqx.combine(arrays, static), x0, parameters, tile)

    apart = PartitionSpec(mesh.axis_names)
    return jax.shard_map(
        lane,
        mesh=mesh,
        in_specs=(PartitionSpec(), apart, apart),
        out_specs=apart,
        check_vma=False,
    )(arrays, x0, parameters)


class Program:
    """A job, compiled for chunks of one size."""

    def __init__(self, job: Job, cell: AbstractCell, chunk: int, place: Mesh | Threads, dtype: Any):
        """`cell` is the first member's."""
        self.job, self.chunk = job, chunk
        # Axes of jax.make_mesh are explicit, which is no concern of a sweep.
        self.place = Mesh(place.devices, place.axis_names) if isinstance(place, Mesh) else place
        devices = list(place.devices.flat) if isinstance(place, Mesh) else jax.local_devices()[:1]
        on_cpu = all(device.platform == "cpu" for device in devices)
        tile = tile_on(devices, job.solver, cell, chunk, np.dtype(dtype))
        room = SAMPLES_ON_CPU if on_cpu else SAMPLES_ELSEWHERE
        most = room // max(1, len(job.times) * cell.size * np.dtype(dtype).itemsize)
        if (tile or chunk) > most:
            tile = max(1, most if most < GRAIN else most // GRAIN * GRAIN)
        self.tile = tile
        lanes = place.size if isinstance(place, Mesh) else place.count()
        grain = self.tile or 1
        self.lanes = max(1, min(lanes, -(-chunk // grain))) if isinstance(place, Threads) else lanes
        self.share = grain * -(-chunk // (grain * self.lanes))
        self.compiled: Any = None

    def __call__(
        self, x0: Float[np.ndarray, "c n"], parameters: Parameters
    ) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " c"]]:
        """What is kept of each member of a chunk, and which failed."""
        more = self.share * self.lanes - self.chunk
        members = jax.tree.map(
            lambda leaf: np.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"),
            (x0, parameters),
        )
        if isinstance(self.place, Mesh):
            apart = NamedSharding(self.place, PartitionSpec(self.place.axis_names))
            spread = jax.device_put(members, apart)
            program: Any = _on_mesh
            found = program(self.job, *spread, self.tile, self.place)
            found = jax.tree.map(np.asarray, found)
        else:
            found = self._on_threads(members)
        kept, failed = jax.tree.map(lambda leaf: leaf[: self.chunk], found)
        return named(kept), failed

    def _on_threads(self, members: tuple[np.ndarray, Parameters]) -> Any:
        def lane(i: int) -> Any:
            mine = slice(i * self.share, (i + 1) * self.share)
            return jax.tree.map(lambda leaf: jnp.asarray(leaf[mine]), members)

        if self.compiled is None:  # here, once: each thread would by itself
            program: Any = _on_thread
            self.compiled = program.lower(self.job, *lane(0), self.tile).compile()

        def work(i: int) -> Any:
            return jax.tree.map(np.asarray, self.compiled(self.job, *lane(i), self.tile))

        parts = on_threads(self.lanes, work, list(range(self.lanes)))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
