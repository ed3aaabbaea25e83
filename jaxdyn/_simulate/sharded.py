"""A batch shared among devices, each of which solves a part of it."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree

from .._cell import AbstractInputs, AbstractVectorField
from .._solver import AbstractCellSolver
from .._types import Args, is_traced
from .adjoint import ReversibleAdjoint
from .reversible import integrate_reversibly
from .rollout import Rollout, part
from .scan import integrate
from .schedule import Rows
from .tiles import GRAIN

# On CPU a batch is cut into at least so many tiles, for as many devices to have equal parts of.
LEAST_TILES = 64
# Tiles of solvers that have no size of their own.
DEFAULT_TILE = 128


def check_mesh(mesh: Mesh, x0: Array, engine: Any, progress: bool) -> None:
    """Refuses what cannot be shared.

    **Raises:** ValueError that names the argument.
    """
    if x0.ndim == 1:
        raise ValueError(
            f"`mesh` shares a batch among devices, and `x0` is one state {x0.shape}; give (b, n), "
            "or leave `mesh` out."
        )
    if engine is not None:
        raise ValueError("`mesh` and `engine` exclude each other; leave one of them out.")
    if progress:
        raise ValueError("`progress=True` does not go with `mesh`; leave it out.")
    if not is_traced(x0) and x0.committed and not x0.devices() <= set(mesh.devices.flat):
        raise ValueError(
            f"`x0` is on {_names(x0.devices())}, which is not part of `mesh`, "
            f"{_names(mesh.devices.flat)}; give it as a NumPy array, or move it with "
            "jax.device_put."
        )


def _names(devices: Any) -> str:
    return ", ".join(sorted(str(device) for device in devices))


def integrate_on_mesh(
    rollout: Rollout, rows: Rows, total: int, adjoint: ReversibleAdjoint | None, mesh: Mesh
) -> tuple[PyTree, Bool[Array, " b"], Any]:
    """As `integrate`, or `integrate_reversibly` for an `adjoint`, with the batch over all axes of
    `mesh`.

    On CPUs in tiles whose size depends on the batch only, so that every trajectory has the same
    numbers, to the last bit, on any number of devices.
    """
    batch, dtype = rollout.x0.shape[0], rollout.x0.dtype
    tile = tile_on(list(mesh.devices.flat), rollout.solver, rollout.cell, batch, dtype)
    # Whether its axes are explicit (those of jax.make_mesh are) is no concern of a solve.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    rollout = eqx.tree_at(lambda r: r.x0, rollout, _on(mesh, rollout.x0))
    if any(d.process_index != jax.process_index() for d in mesh.devices.flat):
        rollout, rows = _everywhere((rollout, rows), mesh)
    return _on_mesh(rollout, rows, total, adjoint, mesh, tile)


def tile_on(
    devices: list, solver: diffrax.AbstractSolver, cell: AbstractVectorField, batch: int, dtype: Any
) -> int | None:
    """The size of the tiles in which `batch` trajectories are shared among `devices`, whose number
    does not matter; None where there are none, not being CPUs."""
    if any(device.platform != "cpu" for device in devices):
        return None
    most = None
    if isinstance(solver, AbstractCellSolver):
        most = solver.tile(cell, dtype.itemsize, shared=True)
    return min(most or DEFAULT_TILE, GRAIN * -(-batch // (GRAIN * LEAST_TILES)))


def _on(mesh: Mesh, x0: Array) -> Array:
    """`x0`, with what lies on another mesh of the same axes moved to this one."""
    if is_traced(x0) or not isinstance(x0.sharding, NamedSharding):
        return x0
    if x0.sharding.mesh.axis_names != mesh.axis_names:
        return x0
    return jax.device_put(x0, NamedSharding(mesh, x0.sharding.spec))


def _everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """What this process has, which all others have too, on all devices of `mesh`."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(leaf):
        known = isinstance(leaf, jax.Array) and (is_traced(leaf) or not leaf.is_fully_addressable)
        return leaf if known or not eqx.is_array(leaf) else jax.device_put(leaf, everywhere)

    return jax.tree.map(one, tree)


class _Within(AbstractInputs):
    """Inputs of trajectories 0, ..., last; those that fill up the last part have the last one's."""

    inputs: AbstractInputs
    last: int = eqx.field(static=True)

    def __call__(self, i: Array | int) -> Args:
        return self.inputs(jnp.minimum(i, self.last))


@eqx.filter_jit
def _on_mesh(
    rollout: Rollout,
    rows: Rows,
    total: int,
    adjoint: ReversibleAdjoint | None,
    mesh: Mesh,
    tile: int | None,
) -> tuple[PyTree, Bool[Array, " b"], Any]:
    batch = rollout.x0.shape[0]
    grain = 1 if tile is None else tile
    share = grain * -(-batch // (grain * mesh.size))
    x0 = jnp.pad(rollout.x0, ((0, share * mesh.size - batch), (0, 0)), mode="edge")
    rollout = eqx.tree_at(lambda r: r.inputs, rollout, _Within(rollout.inputs, batch - 1))
    rest = eqx.tree_at(lambda r: r.x0, rollout, x0[:1])
    arrays, static = eqx.partition((rest, rows), eqx.is_array)

    def solve(arrays, x0):
        rest, rows = eqx.combine(arrays, static)
        start = jax.lax.axis_index(mesh.axis_names).astype(int) * share
        mine = part(rest, x0, start)
        if adjoint is None:
            return integrate(mine, rows, None, tile)
        return integrate_reversibly(mine, rows, total, adjoint, tile)

    apart, same = PartitionSpec(mesh.axis_names), PartitionSpec()
    solved = jax.shard_map(
        solve, mesh=mesh, in_specs=(same, apart), out_specs=apart, check_vma=False
    )(arrays, x0)
    # What is cut is whole on every device, as parts of different sizes are none for JAX.
    return solved if batch == share * mesh.size else jax.tree.map(lambda leaf: leaf[:batch], solved)
