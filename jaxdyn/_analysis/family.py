"""Families of periodic orbits: one closed orbit after the other, followed through folds."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._cell import AbstractCell, AntisymmetricCell
from .._solver import Taylor
from .._types import is_traced
from .flow import Flow, checked_flow, positive, whole
from .periodic import (
    TAYLOR_STEP,
    TOLERANCES,
    PeriodicOrbit,
    casimirs,
    conserves,
    least_squares,
    stability_indices,
    with_tangents,
)

# A family starts where its mode is linear to six digits: H = 1e-6.
FIRST_ENERGY = 1e-6
# A step that needs so few corrections may grow, one that needs so many shrinks.
FEW, MANY = 4, 9
GROW, SHRINK, SMALLEST = 1.4, 0.5, 1e-6
CORRECTIONS = 12
LOCATE = 40
# |index| - 2 below this is rounding: the monodromy's own, magnified by the pair's Jordan block.
ON_CIRCLE = 1e-6


class Bifurcation(eqx.Module):
    """Where a stability index passes +2 (`kind` "fold or branch": a multiplier pair meets at 1) or
    -2 ("period doubling": at -1), between two members of a family.

    `energy`, `period` and a state `x` (n,) of the orbit there; `after`, the member before it.
    """

    kind: str = eqx.field(static=True)
    energy: float = eqx.field(static=True)
    period: float = eqx.field(static=True)
    x: Float[Array, " n"]
    after: int = eqx.field(static=True)


class OrbitFamily(eqx.Module):
    """Periodic orbits of one cell along a branch, one row each.

    `energy` (p,), `period` (p,), a state `x` (p, n), `residual` (p,), `stability_indices` (p, h) as
    of [`jaxdyn.floquet`][] but each column followed along the branch, `arclength` (p,);
    `bifurcations`, those that were located; `reason`, why it ends.
    """

    energy: Float[Array, " p"]
    period: Float[Array, " p"]
    x: Float[Array, "p n"]
    residual: Float[Array, " p"]
    stability_indices: Complex[Array, "p h"]
    arclength: Float[Array, " p"]
    bifurcations: tuple[Bifurcation, ...]
    reason: str = eqx.field(static=True)

    @property
    def stable(self) -> Array:
        """Whether every index lies in [-2, 2], (p,)."""
        index = self.stability_indices
        inside = jnp.abs(jnp.imag(index)) < ON_CIRCLE
        inside &= jnp.abs(jnp.real(index)) <= 2 + ON_CIRCLE
        return jnp.all(inside, axis=1)

    def to_csv(self) -> str:
        """The branch as a table, without the states."""
        h = self.stability_indices.shape[1]
        names = [f"index_{i + 1}_{part}" for i in range(h) for part in ("real", "imag")]
        rows = [",".join(["energy", "period", "arclength", "residual", *names])]
        for i in range(len(self.energy)):
            index = np.asarray(self.stability_indices[i])
            parts = np.stack([np.real(index), np.imag(index)], axis=1).ravel()
            head = (self.energy[i], self.period[i], self.arclength[i], self.residual[i])
            rows.append(",".join(repr(float(v)) for v in (*head, *parts)))
        return "\n".join(rows) + "\n"


class _Branch(eqx.Module):
    """One step of the continuation in z = (x, ln T), compiled once for a number of steps."""

    flow: Flow
    kernel: Float[Array, "d n"]
    steps: int = eqx.field(static=True)

    def shoot(self, z: Array, before: Array, tangent: Array, ahead: Array) -> tuple[Array, ...]:
        """Return, phase against the orbit `before`, Casimirs, and distance along the tangent; their
        derivative by z, and the monodromy."""
        x, period = z[:-1], jnp.exp(z[-1])
        n, zero = x.size, jnp.zeros((), x.dtype)
        at, monodromy = with_tangents(self.flow, x, period, self.steps)
        rate = self.flow.rate(zero, before[:-1])
        rate = rate / jnp.linalg.norm(rate)
        moved = z - before
        r = jnp.concatenate(
            [
                at - x,
                (rate @ moved[:-1])[None],
                self.kernel @ moved[:-1],
                (tangent @ moved - ahead)[None],
            ]
        )
        column = jnp.zeros_like(z)
        left = jnp.concatenate([monodromy - jnp.eye(n, dtype=z.dtype), rate[None], self.kernel])
        right = jnp.zeros(left.shape[0], z.dtype).at[:n].set(period * self.flow.rate(zero, at))
        jacobian = jnp.concatenate([left, right[:, None]], axis=1)
        jacobian = jnp.concatenate([jacobian, (column + tangent)[None]])
        return r, jacobian, monodromy

    @eqx.filter_jit
    def correct(self, before: Array, tangent: Array, ahead: Array) -> tuple[Array, ...]:
        """The orbit at the distance `ahead`, how far off it is, its tangent, its monodromy, and how
        many corrections it took."""
        shoot = lambda z: self.shoot(z, before, tangent, ahead)  # noqa: E731
        start = before + ahead * tangent
        z, r, jacobian, monodromy, count = least_squares(shoot, start, CORRECTIONS)
        # Undamped: along the amplitude of a small orbit any damping is large.
        z = z - jnp.linalg.pinv(jacobian) @ r
        r = shoot(z)[0]
        _, _, rows = jnp.linalg.svd(jacobian[:-1])
        along = rows[-1] * jnp.sign(rows[-1] @ tangent)
        return z, jnp.max(jnp.abs(r[: z.size - 1])), along, monodromy, count

    @eqx.filter_jit
    def indices(self, z: Array, monodromy: Array) -> Complex[Array, " h"]:
        """lambda + 1 / lambda of the pairs that are not trivial."""
        x = z[:-1]
        rate = self.flow.rate(jnp.zeros((), x.dtype), x)
        slope = jax.grad(self.flow.field.energy)(x)
        taken = jnp.concatenate([rate[None], slope[None], self.kernel])
        q, _ = jnp.linalg.qr(taken.T, mode="complete")
        rest = q[:, taken.shape[0] :]
        reduced = rest.T @ monodromy @ rest
        if reduced.shape[0] == 0:
            return jnp.zeros(0, np.result_type(x.dtype, np.complex64))
        multipliers = jnp.linalg.eigvals(reduced)
        return stability_indices(multipliers[jnp.argsort(-jnp.abs(multipliers))])

    def energy(self, z: Array) -> float:
        return float(self.flow.field.energy(z[:-1]))


def orbit_family(
    cell: Any,
    start: Any,
    *,
    max_energy: Any = 5.0,
    max_orbits: Any = 200,
    step: Any = 0.05,
    max_step: Any = 0.3,
    tol: Any = None,
    throw: bool = True,
) -> OrbitFamily:
    r"""A one-parameter family of periodic orbits of a conservative cell, by pseudo-arclength.

    Orbits of such a cell come in families along which the energy varies; by Lyapunov's centre
    theorem one begins at every linear mode that is not resonant. Each orbit z = (x, ln T) is
    predicted along the tangent of the branch and corrected by Levenberg-Marquardt on the return,
    the phase, the Casimirs and the distance (Keller 1977), so that branches are followed where the
    energy turns back. An orbit that is further off than twice the distance asked for, as one whose
    period jumps or falls towards 0, is refused, and the step halved. Where a stability index
    passes +2 or -2 the orbit there is located by secants on the distance.

    **Arguments:**

    - `cell`: neither driven, damped nor regulated.
    - `start`: k, the number of a linear mode, 0 for that of the largest frequency; or a
      [`jaxdyn.PeriodicOrbit`][] of the cell, whose energy then grows at first.
    - `max_energy`: where the branch ends; `max_orbits`: how many orbits at most.
    - `step`, `max_step`: the first and the longest distance between orbits, in units of z.
    - `tol`: the largest residual; default 1e-9, and 1e-4 in float32.
    - `throw`: whether a branch that cannot be followed beyond its start raises.

    **Returns:** an [`jaxdyn.OrbitFamily`][]; `.reason` says whether an end was reached or the
    branch was lost.

    **Raises:** TypeError or ValueError that names the argument; RuntimeError when not even a second
    orbit is found.
    """
    if not isinstance(cell, AbstractCell) or not conserves(cell) or cell.input_matrix is not None:
        raise ValueError(
            "`cell` must conserve its energy, for its periodic orbits to come in families: neither "
            f"driven, damped nor regulated; got {cell!r}."
        )
    if is_traced(cell):
        raise ValueError("`cell` must be concrete: how long a branch is depends on its values.")
    if isinstance(cell, AntisymmetricCell) and cell.operator.kernel().shape[0]:
        raise ValueError(
            "`cell` is an AntisymmetricCell with singular W, whose orbits can be shifted along ker "
            "W and come in more than one parameter; take PoissonCell(cell.operator, "
            "cell.activation), which has the same orbits in z = W y + b."
        )
    limit, most = positive("max_energy", max_energy), whole("max_orbits", max_orbits, 2)
    ds, longest = positive("step", step), positive("max_step", max_step)
    x, period = _start(cell, start)
    flow, x = checked_flow(cell, x, None, None, exact=Taylor(16))
    tol = TOLERANCES[x.dtype == jnp.float64] if tol is None else positive("tol", tol)
    kernel = casimirs(flow.field, x)
    norm = float(np.max(np.asarray(cell.operator.frequencies())))

    def branch(period: float) -> _Branch:
        """With steps that are exact for orbits up to twice as long, so that few are compiled."""
        needed = period * norm / (TAYLOR_STEP if isinstance(flow.solver, Taylor) else 0.02)
        return _Branch(flow, kernel, 2 ** math.ceil(math.log2(max(16.0, needed))))

    on = branch(period)
    z = jnp.append(x, jnp.asarray(math.log(period), x.dtype))
    # The tangent of a family at its start is along the amplitude.
    tangent = jnp.append(x, jnp.zeros((), x.dtype)) / jnp.linalg.norm(x)
    z, residual, tangent, monodromy, _ = on.correct(z, tangent, jnp.zeros((), x.dtype))
    if not float(residual) <= tol:
        raise RuntimeError(
            f"`start` leads to no periodic orbit (residual {float(residual):.2g}); give another."
        )
    if on.energy(z) >= limit:
        raise ValueError(f"`max_energy` must be above that of `start`, {on.energy(z):g}.")
    slope = jax.grad(flow.field.energy)(z[:-1])
    tangent = tangent * jnp.where(tangent[:-1] @ slope < 0, -1.0, 1.0)
    rows = [(z, float(residual), on.indices(z, monodromy), 0.0)]
    found: list[Bifurcation] = []
    reason = f"max_orbits = {most} reached"
    # A first step no longer than the orbit is wide.
    ds = min(ds, 0.5 * float(jnp.linalg.norm(z[:-1])))
    while len(rows) < most:
        wanted = branch(float(jnp.exp(z[-1])))
        on = wanted if wanted.steps > on.steps else on
        ahead = jnp.asarray(ds, x.dtype)
        new, residual, along, monodromy, count = on.correct(z, tangent, ahead)
        turned = float(along @ tangent)
        near = float(jnp.linalg.norm(new - z)) <= 2 * ds
        if not (float(residual) <= tol and turned > 0.8 and near):
            ds *= SHRINK
            if ds < SMALLEST:
                reason = "the branch was lost: no orbit within the smallest step"
                break
            continue
        index = _followed(rows[-1][2], on.indices(new, monodromy))
        found += _located(on, z, tangent, ds, rows[-1][2], index, len(rows) - 1, tol)
        z, tangent = new, along
        rows.append((z, float(residual), index, rows[-1][3] + ds))
        if on.energy(z) >= limit:
            reason = f"max_energy = {limit:g} reached"
            break
        if int(count) <= FEW:
            ds = min(longest, GROW * ds)
        elif int(count) >= MANY:
            ds = max(SMALLEST, SHRINK * ds)
    if len(rows) < 2 and throw:
        raise RuntimeError(f"no family: {reason}; give another `start`, or a smaller `step`.")
    zs = jnp.stack([row[0] for row in rows])
    return OrbitFamily(
        energy=jax.vmap(flow.field.energy)(zs[:, :-1]),
        period=jnp.exp(zs[:, -1]),
        x=zs[:, :-1],
        residual=jnp.asarray([row[1] for row in rows], x.dtype),
        stability_indices=jnp.stack([row[2] for row in rows]),
        arclength=jnp.asarray([row[3] for row in rows], x.dtype),
        bifurcations=tuple(found),
        reason=reason,
    )


def _start(cell: AbstractCell, start: Any) -> tuple[Array, float]:
    """A state and a period near the first orbit."""
    if isinstance(start, PeriodicOrbit):
        if not bool(start.converged):
            raise ValueError(f"`start` is no orbit: {start.reason}.")
        return start.x, float(start.period)
    if isinstance(start, bool) or not isinstance(start, int | np.integer):
        raise TypeError(
            "`start` must be the number of a linear mode, or what jaxdyn.periodic_orbit returned; "
            f"got {start!r}."
        )
    if cell.bias is not None:
        raise ValueError("`start` must be an orbit for a `cell` with a bias: 0 is no centre of it.")
    slopes = np.asarray(jax.vmap(cell.activation.derivative)(jnp.zeros((1, cell.size))))[0]
    root = np.sqrt(slopes)
    W = np.asarray(cell.operator.as_matrix(), np.float64)
    values, vectors = np.linalg.eigh(1j * (root[:, None] * W * root[None]))
    modes = np.flatnonzero(values > 1e-12 * np.abs(values).max())[::-1]
    if not 0 <= start < len(modes):
        raise ValueError(f"`start` must be a mode from 0 to {len(modes) - 1}, got {start}.")
    w = values[modes[start]]
    # x = W s(x) with s(x) ~ slope x: symmetric coordinates are root x.
    v = np.real(vectors[:, modes[start]]) / root
    energy = 0.5 * np.sum(slopes * v**2)
    x = jnp.asarray(v * math.sqrt(FIRST_ENERGY / energy), cell.operator.dtype)
    return x, float(2 * np.pi / w)


def _followed(before: Array, now: Array) -> Array:
    """The indices in the order of those before them: each the nearest that is left."""
    left, order = list(range(len(now))), []
    for old in np.asarray(before):
        best = min(left, key=lambda i: abs(complex(now[i]) - complex(old)))
        left.remove(best)
        order.append(best)
    return now[jnp.asarray(order, int)] if order else now


def _located(
    on: _Branch,
    z: Array,
    tangent: Array,
    ds: float,
    before: Array,
    after: Array,
    number: int,
    tol: float,
) -> list[Bifurcation]:
    """The orbits between two members at which an index is +2 or -2."""
    out = []
    for column in range(len(before)):
        for edge, kind in ((2.0, "fold or branch"), (-2.0, "period doubling")):
            low, high = complex(before[column]), complex(after[column])
            real = abs(low.imag) < ON_CIRCLE and abs(high.imag) < ON_CIRCLE
            if not real or (low.real - edge) * (high.real - edge) >= 0:
                continue
            if min(abs(low.real - edge), abs(high.real - edge)) < ON_CIRCLE:
                continue
            a, fa, b, fb = 0.0, low.real - edge, ds, high.real - edge
            at, residual, f = z, jnp.inf, jnp.inf
            for i in range(LOCATE):
                middle = a - fa * (b - a) / (fb - fa) if i % 3 != 2 else 0.5 * (a + b)
                at, residual, _, monodromy, _ = on.correct(z, tangent, jnp.asarray(middle, z.dtype))
                f = complex(_followed(before, on.indices(at, monodromy))[column]).real - edge
                if abs(f) < 1e-9 or b - a < 1e-12:
                    break
                if (f < 0) == (fa < 0):
                    a, fa = middle, f
                else:
                    b, fb = middle, f
            # Columns that changed places between two members are no crossing.
            if float(residual) <= tol and abs(f) < ON_CIRCLE:
                period = float(jnp.exp(at[-1]))
                out.append(Bifurcation(kind, on.energy(at), period, at[:-1], after=number))
    return out
