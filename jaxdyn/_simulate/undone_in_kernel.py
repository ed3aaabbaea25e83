"""The gradient of a kernel's solve, by kernels that undo its steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._cell import is_constant_input
from .._kernel import Kernel
from .reversible import MISSED, allowed_error, distance
from .rollout import Rollout
from .schedule import Rows

# Bytes that a trajectory carries along while its steps are undone: the state, its cotangent and the
# gradient of everything else. A thread has 255 registers of four bytes; a step needs some too.
MOST_CARRIED = 448


def serves(rollout: Rollout, rows: Rows) -> bool:
    """Whether the gradient of this solve fits into a kernel."""
    n = rollout.x0.shape[-1]
    u, apart = rollout.inputs.stacked()
    cell = rollout.solver.form(rollout.cell)
    size = sum(v.size for v in jax.tree.leaves(eqx.filter(cell, eqx.is_inexact_array)))
    own = sum(v.size for v in jax.tree.leaves(eqx.filter(u, eqx.is_inexact_array)))
    own = own // rollout.x0.shape[0] if apart else own
    carried = (2 * n + size + own + 2) * rollout.x0.dtype.itemsize
    # On a grid the input has to be seen at the very times of the way there.
    exact = getattr(rollout.solver, "grid", None) is not None and not is_constant_input(u)
    return not rows.sided and not exact and carried <= MOST_CARRIED


def undone_in_kernel(
    rollout: Rollout,
    rows: Rows,
    ys: Float[Array, "b t n"],
    ct: Float[Array, "b t n"],
    error: float | None,
    kernel: Kernel,
) -> tuple[PyTree, Array, Array, Array]:
    """The gradient by what the solver forms of the cell and the input, by x0, by t0 and by dt.

    From a save to the one before, the steps are undone in one kernel: a trajectory is the state x,
    its cotangent l, and the sum so far of the gradients of its steps. Saved states are as they were
    saved, and what comes back is compared with them.

    **Raises:** ValueError where a kernel cannot do it; a RuntimeError at run time when a state that
    comes back is off by more than `error`.
    """
    from .._kernel.launch import Saves, integrate_in_kernel

    solver, n, batch = rollout.solver, rollout.x0.shape[-1], rollout.x0.shape[0]
    (free, fixed), apart, static = parts(rollout)
    dtype = rollout.x0.dtype

    def in_precision(tree):
        return jax.tree.map(lambda v: v.astype(dtype), tree)

    one = free[0], jax.tree.map(lambda v: v[0], free[1]) if apart else free[1]
    flat, unravel = ravel_pytree(in_precision((*one, rollout.t0, rollout.dt)))

    def advance(free, fixed, t, dt, x):
        cell, u = eqx.combine(free, fixed, static)
        return solver.advance_lane(cell, t, dt, x, u)

    def back(constants, t, dt, y):
        """`dt` is that of the undoing, and `t` the time at the end of the step."""
        free, fixed, t0 = constants
        x, l, gradient = y[:n], y[n : 2 * n], y[2 * n :]
        before = advance(free, fixed, t, dt, x)
        _, vjp = jax.vjp(lambda f, t, h, x: advance(f, fixed, t, h, x), free, t + dt, -dt, before)
        of_free, of_t, of_dt, l = vjp(l)
        # The time of step k is t0 + k dt.
        k = jnp.round((t0 - t - dt) / jnp.where(dt == 0, 1, dt))
        change, _ = ravel_pytree(in_precision((*of_free, of_t, of_dt + k * of_t)))
        return jnp.concatenate([before, l, gradient + change])

    end = (rows.start + rows.count)[rows.kept]
    start = jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]])
    first = solver.start(rollout.x0)
    known = jnp.concatenate([first[:, None], ys[:, :-1]], axis=1)
    own = ((False, apart), (False, apart), False)

    def segment(carry, xs):
        y, worst = carry
        start, end, x, before, of_x = xs
        y = jnp.concatenate([x, y[:, n : 2 * n] + of_x, y[:, 2 * n :]], axis=1)
        saves = Saves(-end[None], (end - start)[None], None)
        constants = (free, fixed, rollout.t0)
        given = back, constants, own, y, rollout.t0, -rollout.dt, saves, kernel
        y = integrate_in_kernel(*given)[:, 0]
        return (y, jnp.maximum(worst, distance(y[:, :n].T, before.T))), None

    zero = jnp.zeros((batch, 2 * n + flat.size), dtype)
    by_save = (jnp.moveaxis(v, 1, 0) for v in (ys, known, ct))
    (y, worst), _ = jax.lax.scan(
        segment, (zero, jnp.zeros(batch, dtype)), (start, end, *by_save), reverse=True
    )
    of_cell, of_u, of_t0, of_dt = jax.vmap(unravel)(y[:, 2 * n :])
    total = [jax.tree.map(lambda v: jnp.sum(v, axis=0), v) for v in (of_cell, of_u, of_t0, of_dt)]
    of_free = total[0], of_u if apart else total[1]
    of_free = jax.tree.map(lambda v, like: v.astype(like.dtype), of_free, free)
    out = of_free, y[:, n : 2 * n], total[2], total[3]
    bound = allowed_error(error, dtype)
    lost = ~(worst <= bound) & jnp.all(jnp.isfinite(ys[:, -1]), axis=-1)
    return eqx.error_if(out, jnp.any(lost), MISSED)


def parts(rollout: Rollout) -> tuple[tuple[PyTree, PyTree], bool, PyTree]:
    """What the solver forms of the cell, and the input: the numbers to differentiate by and other
    arrays; whether the input is each trajectory's own; and all that is no array."""
    u, apart = rollout.inputs.stacked()
    arrays, static = eqx.partition((rollout.solver.form(rollout.cell), u), eqx.is_array)
    return eqx.partition(arrays, eqx.is_inexact_array), apart, static
