"""A fixed-step solve of a batch, as data."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._cell import AbstractInputs, AbstractVectorField
from .._solver import AbstractCellSolver
from .._types import Args


class Saving(eqx.Module):
    """The user's `fn(t, x, args)` as a function of (t, x, i), i the number of a trajectory."""

    fn: Callable[[Array, Array, Any], PyTree]
    inputs: AbstractInputs

    def __call__(self, t: Array, x: Array, i: Array) -> PyTree:
        return self.fn(t, x, self.inputs(i))


class Rollout(eqx.Module):
    """A fixed-step solve of a batch: what it depends on, and what can be differentiated."""

    solver: AbstractCellSolver
    cell: AbstractVectorField
    inputs: AbstractInputs
    x0: Float[Array, "..."]
    t0: Float[Array, ""]
    dt: Float[Array, ""]
    fn: Callable[[Array, Array, Array], PyTree] | None
    """`fn(t, x, i)` is what to save of trajectory i; None saves x."""

    def time(self, k: Array) -> Array:
        return self.t0 + k.astype(self.x0.dtype) * self.dt

    def advance(self, prepared: Any, t: Array, dt: Array, x: Array) -> Array:
        return self.solver.advance_batch(prepared, t, dt, x, self.inputs)

    def output(self, x: Array, k: Array, side: Array | None) -> tuple[PyTree, Bool[Array, " b"]]:
        """What is saved after `k` steps, state `x`, and a fraction `side` of one more."""
        at = self.time(k)
        if side is not None:
            h, end = side * self.dt, at
            x = jax.lax.cond(
                side != 0, lambda x: self.advance(self.cell, end, h, x), lambda x: x, x
            )
            at = end + h
        finite = jnp.all(jnp.isfinite(x), axis=0)
        if self.fn is None:
            return x, finite
        save = jax.vmap(self.fn, in_axes=(None, 1, 0))
        return save(at, x, jnp.arange(x.shape[1])), finite


def laid_out(rollout: Rollout) -> Rollout:
    """`rollout`, given with x0 (n,) or (b, n), with the batch in the minor axis."""
    return eqx.tree_at(lambda r: r.x0, rollout, jnp.atleast_2d(rollout.x0).T)


class _From(AbstractInputs):
    """The inputs of trajectories from number `start` on."""

    inputs: AbstractInputs
    start: Array

    def __call__(self, i: Array | int) -> Args:
        return self.inputs(self.start + i)


def part(rollout: Rollout, x0: Float[Array, "k n"], start: Array) -> Rollout:
    """The solve of `x0`, trajectories `start`, `start` + 1, ... of `rollout`."""
    inputs = _From(rollout.inputs, start)
    out = eqx.tree_at(lambda r: (r.x0, r.inputs), rollout, (x0, inputs))
    return eqx.tree_at(lambda r: r.fn.inputs, out, inputs) if isinstance(out.fn, Saving) else out
