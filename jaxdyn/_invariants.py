"""What a solve should conserve, and by how much it misses."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._cell import AbstractCell, AntisymmetricCell, cast, check_constant, check_state
from ._simulate import check_number
from ._solver import AbstractCellSolver
from ._types import Args, RealScalar, is_traced


def energy_drift(cell: AbstractCell, x0: Any, sol: Any) -> Float[Array, "*b"]:
    """The worst relative error of the energy over what was saved, max |H - H0| / max(|H0|, tiny).

    **Arguments:**

    - `cell`: the cell that was integrated.
    - `x0`: its initial states, (n,) or (b, n).
    - `sol`: what `simulate` returned, or its `.ys`: states (t, n) or (b, t, n).

    **Returns:** one number per trajectory, () or (b,); NaN where the solve failed.

    **Raises:** TypeError or ValueError that names the argument, such as `sol` when it does not hold
    states of `x0`'s trajectories.
    """
    cell, x0, ys = _states(cell, x0, sol)
    h0 = _over(cell.energy, x0.ndim)(x0)
    h = _over(cell.energy, ys.ndim)(ys)
    error = jnp.max(jnp.abs(h - h0[..., None]), axis=-1)
    return error / jnp.maximum(jnp.abs(h0), jnp.finfo(h0.dtype).tiny)


def casimir_drift(cell: AbstractCell, x0: Any, sol: Any) -> Float[Array, "*b"]:
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
    x: Any,
    dt: RealScalar,
    *,
    t: RealScalar = 0.0,
    args: Args = None,
) -> Float[Array, ""]:
    """max |M W M^T - W| of one step, M its Jacobian at `x`: 0 to rounding for a Poisson map.

    **Arguments:** `solver`, one of ours; `cell`, a PoissonCell; `x`, the state (n,); `dt`, the
    step, not 0, negative for a step back; `t`, `args`, time and input.

    **Raises:** TypeError or ValueError that names the argument.

    Source: Hairer, Lubich and Wanner, Geometric Numerical Integration, VII.4.
    """
    x, dt, t = _one_state(solver, cell, x, dt, t)
    if isinstance(cell, AntisymmetricCell):
        raise ValueError(
            "`cell` must be a PoissonCell: an AntisymmetricCell has the bracket of W only in "
            "z = W y + b. Measure jaxdyn.PoissonCell(cell.operator, cell.activation) at z instead."
        )
    step = _one_step(solver, cell, x, t, args)
    m = jax.jacfwd(lambda x: step(x, dt))(x)
    w = cell.operator.as_matrix().astype(x.dtype)
    return jnp.max(jnp.abs(m @ w @ m.T - w))


def reversibility_error(
    solver: AbstractCellSolver,
    cell: AbstractCell,
    x: Any,
    dt: RealScalar,
    *,
    t: RealScalar = 0.0,
    args: Args = None,
) -> Float[Array, ""]:
    """max |Phi_-h(Phi_h(x)) - x| of one step: 0 to rounding for a self-adjoint method.

    **Arguments**, **Raises:** as [`jaxdyn.poisson_defect`][], for any cell of ours.
    """
    x, dt, t = _one_state(solver, cell, x, dt, t)
    forward = _one_step(solver, cell, x, t, args)(x, dt)
    back = _one_step(solver, cell, x, t + dt, args)(forward, -dt)
    return jnp.max(jnp.abs(back - x))


def _one_state(solver: Any, cell: Any, x: Any, dt: Any, t: Any) -> tuple[Any, Any, Any]:
    """The state, floating-point, the step and the time, once all that a step takes is checked."""
    if not isinstance(solver, AbstractCellSolver):
        hint = " (an object, not the class)" if isinstance(solver, type) else ""
        raise TypeError(
            f"`solver` must be one of jaxdyn's, such as jaxdyn.Strang(){hint}, got {solver!r}."
        )
    _check_cell(cell)
    solver.check(cell)
    check_constant(x, "x")
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.result_type(float))
    dt = check_number("dt", dt, "a finite number other than 0")
    if not is_traced(dt) and dt == 0:
        raise ValueError("`dt` must be a finite number other than 0, got 0.")
    return check_state(x, cell.size), dt, check_number("t", t, "a finite number")


def _check_cell(cell: Any) -> None:
    if not isinstance(cell, AbstractCell):
        raise TypeError(
            f"`cell` must be a jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell, got {cell!r}."
        )


def _one_step(solver, cell, x, t, args):
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


def _states(cell: AbstractCell, x0: Any, sol: Any) -> tuple[AbstractCell, Array, Array]:
    _check_cell(cell)
    ys: Any = sol.ys if isinstance(sol, diffrax.Solution) else sol
    if not isinstance(ys, jax.Array | np.ndarray):
        raise TypeError(
            "`sol` must be what simulate returned, with states in it, or an array of states; got "
            f"{type(ys).__name__}. Save states, as saveat=diffrax.SaveAt(steps=True) does."
        )
    ys = jnp.asarray(ys)
    if not jnp.issubdtype(ys.dtype, jnp.floating):
        raise TypeError(
            f"`sol` must hold real floating-point states, got dtype {ys.dtype}; convert them with "
            "jnp.asarray(sol, float)."
        )
    check_constant(x0, "x0")
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
    if ys.shape[-2] == 0:
        raise ValueError(
            "`sol` holds no states; save some, as saveat=diffrax.SaveAt(t1=True) does."
        )
    if isinstance(sol, diffrax.Solution) and sol.ts is not None:
        # diffrax fills the places of steps that were not taken with infinity.
        unused = jnp.broadcast_to(jnp.isinf(sol.ts), ys.shape[:-1])
        ys = jnp.where(unused[..., None], x0[..., None, :], ys)
        failed = (sol.result != diffrax.RESULTS.successful) & (
            sol.result != diffrax.RESULTS.event_occurred
        )
        ys = jnp.where(failed[..., None, None], jnp.nan, ys)
    return cast(cell, ys.dtype), x0, ys
