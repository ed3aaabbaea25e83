"""What a solve should conserve, and by how much it misses."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._cell import AbstractCell, cast
from ._solver import AbstractCellSolver
from ._types import Args, RealScalar


def energy_drift(
    cell: AbstractCell, x0: Any, sol: diffrax.Solution | Float[Array, "..."]
) -> Float[Array, "*b"]:
    """The worst relative error of the energy over what was saved, max_t |H - H0| / max(H0, tiny).

    **Arguments:**

    - `cell`: the cell that was integrated.
    - `x0`: its initial states, (n,) or (b, n).
    - `sol`: what `simulate` returned, or its `.ys`: states (t, n) or (b, t, n).

    **Returns:** one number per trajectory, () or (b,).

    **Raises:** ValueError when `sol` does not hold states of `x0`'s trajectories.
    """
    cell, x0, ys = _states(cell, x0, sol)
    h0 = _over(cell.energy, x0.ndim)(x0)
    h = _over(cell.energy, ys.ndim)(ys)
    error = jnp.max(jnp.abs(h - h0[..., None]), axis=-1)
    return error / jnp.maximum(h0, jnp.finfo(h0.dtype).tiny)


def casimir_drift(
    cell: AbstractCell, x0: Any, sol: diffrax.Solution | Float[Array, "..."]
) -> Float[Array, "*b"]:
    """The worst change of a linear invariant c.x over what was saved, in units of the state.

    The rows c are an orthonormal basis of ker W; 0 where W has no kernel. Needs concrete W.

    **Arguments**, **Returns**, **Raises:** as [`jaxdyn.energy_drift`][].
    """
    cell, x0, ys = _states(cell, x0, sol)
    kernel = cell.operator.kernel().astype(x0.dtype)
    if kernel.shape[0] == 0:
        return jnp.zeros(x0.shape[:-1], x0.dtype)
    change = jnp.einsum("kn,...n->...k", kernel, ys - x0[..., None, :])
    return jnp.max(jnp.abs(change), axis=(-2, -1))


def poisson_defect(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x: Float[Array, " n"],
    dt: RealScalar,
    *,
    t: RealScalar = 0.0,
    args: Args = None,
) -> Float[Array, ""]:
    """max |M W M^T - W| of one step, M its Jacobian at `x`: 0 to rounding for a Poisson map.

    **Arguments:** `solver`, one of ours; `cell`, a PoissonCell; `x`, the state (n,); `dt`, the
    step; `t`, `args`, time and input.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, VII.4.
    """
    step = _one_step(solver, cell, x, t, args)
    m = jax.jacfwd(lambda x: step(x, dt))(x)
    w = cell.operator.as_matrix().astype(x.dtype)
    return jnp.max(jnp.abs(m @ w @ m.T - w))


def reversibility_error(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x: Float[Array, " n"],
    dt: RealScalar,
    *,
    t: RealScalar = 0.0,
    args: Args = None,
) -> Float[Array, ""]:
    """max |Phi_-h(Phi_h(x)) - x| of one step: 0 to rounding for a self-adjoint method.

    **Arguments:** as [`jaxdyn.poisson_defect`][], for any cell of ours.
    """
    forward = _one_step(solver, cell, x, t, args)(x, dt)
    back = _one_step(solver, cell, x, t + dt, args)(forward, -dt)
    return jnp.max(jnp.abs(back - x))


def _one_step(solver, cell, x, t, args):
    solver.check(cell)
    cell = cast(cell, x.dtype)
    t = jnp.asarray(t, x.dtype)

    @jax.jit
    def step(x, dt):
        return solver.advance(cell, t, dt, x, args)

    return lambda x, dt: step(x, jnp.asarray(dt, x.dtype))


def _over(fn, ndim: int):
    """`fn` of one state, mapped over all leading axes of an array of `ndim` axes."""
    for _ in range(ndim - 1):
        fn = jax.vmap(fn)
    return fn


def _states(cell: AbstractCell, x0: Any, sol: Any):
    ys = jnp.asarray(sol.ys if isinstance(sol, diffrax.Solution) else sol)
    x0 = jnp.asarray(x0, ys.dtype)
    if x0.ndim not in (1, 2) or x0.shape[-1] != cell.size:
        raise ValueError(
            f"`x0` must have shape ({cell.size},) or (b, {cell.size}); got {np.shape(x0)}."
        )
    if ys.ndim != x0.ndim + 1 or ys.shape[-1] != cell.size or ys.shape[:-2] != x0.shape[:-1]:
        raise ValueError(
            f"`sol` must hold states of shape {x0.shape[:-1]} + (t, {cell.size}) for x0 of shape "
            f"{x0.shape}; got {ys.shape}. A saveat with its own `fn` saves something else."
        )
    return cast(cell, ys.dtype), x0, ys
