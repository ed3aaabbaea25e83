"""Poincare sections: where trajectories cross a plane."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._simulate import check_number
from .._solver import Taylor
from .._types import is_traced
from .flow import checked_flow, positive, step_count, whole
from .lyapunov import check_finite

# Halvings of a step reach its last bit; secants that hit it earlier do no harm.
REFINEMENTS = 60


class PoincareSection(eqx.Module):
    """Crossings of one trajectory, or with a leading axis of each of a batch.

    `points` (*b, c, n) and `times` (*b, c), NaN beyond the last; `count` (*b), how many crossings
    are kept, at most c; `found` (*b), how many there were; `finite` (*b), False where the
    trajectory diverged, after which nothing is kept.
    """

    points: Float[Array, "*b c n"]
    times: Float[Array, "*b c"]
    count: Int[Array, "*b"]
    found: Int[Array, "*b"]
    finite: Bool[Array, "*b"]


def poincare_section(
    field: Any,
    x0: Any,
    t1: Any,
    dt: Any,
    *,
    normal: Any,
    offset: Any = 0.0,
    direction: Any = 1,
    max_crossings: Any = 1000,
    solver: Any = None,
    args: Any = None,
    throw: bool = True,
) -> PoincareSection:
    r"""Where trajectories cross the plane $\mathrm{normal} \cdot x = \mathrm{offset}$.

    A step across the plane is shortened until it ends on it: the time within the step is found by
    bisection and secants on the solver's own step, to the last bits (Henon 1982 in spirit). A
    trajectory that crosses twice within one step is not seen to: choose `dt` below half the time
    between crossings.

    **Arguments:**

    - `field`, `x0`, `t1`, `dt`, `solver`, `args`: as for [`jaxdyn.lyapunov_spectrum`][], but Taylor
      of order 16 for cells that it serves.
    - `normal`: (n,), not 0; or the number of a coordinate.
    - `offset`: where the plane is.
    - `direction`: 1 for crossings along `normal`, -1 against it, 0 for both.
    - `max_crossings`: c, the most that are kept of a trajectory, the first ones.

    **Returns:** a [`jaxdyn.PoincareSection`][]. A start on the plane is no crossing.

    **Raises:** TypeError or ValueError that names the argument; RuntimeError when a trajectory
    diverges, or none crosses the plane.
    """
    flow, x0 = checked_flow(field, x0, solver, args, exact=Taylor(16))
    t1, dt = positive("t1", t1), positive("dt", dt)
    n = x0.shape[-1]
    normal = _normal(normal, n, x0.dtype)
    check_number("offset", offset, "a finite number")
    if direction not in (1, -1, 0):
        raise ValueError(f"`direction` must be 1, -1 or 0 for both, got {direction!r}.")
    most = whole("max_crossings", max_crossings, 1)
    steps = step_count(t1, dt)
    most = min(most, steps)
    dt, offset = jnp.asarray(t1 / steps, x0.dtype), jnp.asarray(offset, x0.dtype)
    found = _section(flow, x0, dt, normal, offset, int(direction), most, steps)
    if throw:
        check_finite(found.finite)
        if not is_traced(found.count) and not bool(jnp.any(found.count > 0)):
            raise RuntimeError(
                "no trajectory crosses the plane; give another `normal`, `offset` or `direction`, "
                "a longer `t1`, or throw=False."
            )
    return found


def _normal(normal: Any, n: int, dtype: Any) -> Float[Array, " n"]:
    if isinstance(normal, int | np.integer) and not isinstance(normal, bool):
        if not -n <= normal < n:
            raise ValueError(
                f"`normal` must be the number of a coordinate below {n}, got {normal}."
            )
        return jnp.zeros(n, dtype).at[normal].set(1.0)
    if np.ndim(normal) != 1 or np.shape(normal) != (n,):
        raise ValueError(
            f"`normal` must have shape ({n},), or be the number of a coordinate; got {normal!r}."
        )
    if not is_traced(normal):
        array = np.asarray(normal, np.float64)
        if not np.all(np.isfinite(array)) or not np.any(array):
            raise ValueError(f"`normal` must be finite and not 0, got {normal!r}.")
    return jnp.asarray(normal, dtype)


@eqx.filter_jit
def _section(flow, x0, dt, normal, offset, direction, most, steps) -> PoincareSection:
    x = jnp.atleast_2d(x0).T
    batch = x.shape[1]
    prepared = flow.prepared(dt)
    columns = jnp.arange(batch)

    def height(x):
        return normal @ x - offset

    def crosses(before, after):
        up = (before < 0) & (after >= 0)
        down = (before > 0) & (after <= 0)
        return up if direction == 1 else down if direction == -1 else up | down

    def step(carry, k):
        x, h, count, before, when = carry
        moved = prepared.advance_batch(k * dt, dt, x)
        after = height(moved)
        hit = crosses(h, after)
        # One more row takes what has no place.
        row = jnp.where(hit & (count < most), count, most)
        before, when = before.at[row, :, columns].set(x.T), when.at[row, columns].set(k)
        # On the plane to the last bit still is on the side it came from.
        h = jnp.where((after == 0) & ~hit, h, after)
        return (moved, h, count + hit.astype(count.dtype), before, when), None

    zero = jnp.zeros(batch, jnp.int32)
    room = jnp.full((most + 1, x.shape[0], batch), jnp.nan, x.dtype)
    times = jnp.full((most + 1, batch), jnp.nan, x.dtype)
    start = (x, height(x), zero, room, times)
    (x, _, found, before, when), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=x.dtype))

    def refined(before, k):
        """The time within a step and the state there."""
        t = k * dt
        at = lambda tau: height(flow.advance(t, tau, before))  # noqa: E731
        low, f_low, high, f_high = jnp.zeros_like(dt), height(before), dt, at(dt)

        def narrow(i, between):
            low, f_low, high, f_high = between
            secant = low - f_low * (high - low) / (f_high - f_low)
            # Every third try halves what secants leave on one side.
            inside = (secant > low) & (secant < high) & (i % 3 != 2)
            middle = jnp.where(inside, secant, 0.5 * (low + high))
            f = at(middle)
            left = (f < 0) == (f_low < 0)
            return (
                jnp.where(left, middle, low),
                jnp.where(left, f, f_low),
                jnp.where(left, high, middle),
                jnp.where(left, f_high, f),
            )

        low, f_low, high, f_high = jax.lax.fori_loop(
            0, REFINEMENTS, narrow, (low, f_low, high, f_high)
        )
        tau = jnp.where(jnp.abs(f_low) < jnp.abs(f_high), low, high)
        return t + tau, flow.advance(t, tau, before)

    kept = jnp.moveaxis(before[:most], -1, 0), when[:most].T
    times, points = jax.vmap(jax.vmap(refined))(*kept)
    finite = jnp.all(jnp.isfinite(x), axis=0)
    count = jnp.minimum(found, most)
    out = PoincareSection(points, times, count, found, finite)
    return out if x0.ndim == 2 else jax.tree.map(lambda a: a[0], out)
