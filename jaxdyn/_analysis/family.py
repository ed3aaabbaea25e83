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
from .branch import LOST, Bifurcation, Branch, Member, follow, locate, step_sizes
from .flow import checked_flow, positive, whole
from .periodic import (
    STEPS,
    TOLERANCES,
    PeriodicOrbit,
    conserves,
    linear_invariants,
    stability_indices,
)

# A family starts where its mode is linear to six digits: H = 1e-6.
FIRST_ENERGY = 1e-6
# |index| - 2 below this is rounding: the monodromy's own, magnified by the pair's Jordan block.
ON_CIRCLE = 1e-6


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
    ds, longest = step_sizes(step, max_step)
    x, period = _start(cell, start)
    flow, x = checked_flow(cell, x, None, None, exact=Taylor(16))
    tol = TOLERANCES[x.dtype == jnp.float64] if tol is None else positive("tol", tol)
    rows = linear_invariants(flow.field, x)
    branch = Branch(
        _One(flow.field), flow.solver, None, rows, jnp.zeros((), x.dtype), jnp.asarray(STEPS)
    )
    z = jnp.append(x, jnp.asarray(math.log(period), x.dtype))
    # The tangent of a family at its start is along the amplitude.
    tangent = jnp.append(x, jnp.zeros((), x.dtype)) / jnp.linalg.norm(x)
    branch = branch.suited(z)
    first, _ = branch.correct(Member(z, 0.0, tangent, jnp.eye(x.size), 0.0), 0.0)
    if not first.residual <= tol:
        raise RuntimeError(
            f"`start` leads to no periodic orbit (residual {first.residual:.2g}); give another."
        )

    def energy(member: Member) -> float:
        return float(flow.field.energy(branch.x(member.z)))

    def indices(member: Member) -> np.ndarray:
        normals = jax.grad(flow.field.energy)(branch.x(member.z))[None]
        return np.asarray(stability_indices(branch.multipliers(member, normals)))

    if energy(first) >= limit:
        raise ValueError(f"`max_energy` must be above that of `start`, {energy(first):g}.")
    slope = jax.grad(flow.field.energy)(branch.x(first.z))
    if float(first.tangent[:-1] @ slope) < 0:
        first = first._replace(tangent=-first.tangent)
    members, index, found, reason = [first], [indices(first)], [], LOST
    # A first step no longer than the orbit is wide.
    ds = min(ds, 0.5 * float(jnp.linalg.norm(branch.x(first.z))))
    for on, member in follow(branch, first, ds, longest, tol):
        before, after = index[-1], _followed(index[-1], indices(member))
        for column, kind, edge in _crossed(before, after):

            def beyond(member: Member, before=before, column=column, edge=edge) -> float:
                return complex(_followed(before, indices(member))[column]).real - edge

            at = locate(on, members[-1], members[-1], member, beyond, tol)
            # Columns that changed places between two members are no crossing.
            if at is not None and abs(beyond(at)) < ON_CIRCLE:
                x, T = on.x(at.z), on.period(at.z)
                found.append(Bifurcation(kind, energy(at), T, x, at.arclength))
        members.append(member)
        index.append(after)
        if energy(member) >= limit:
            reason = f"max_energy = {limit:g} reached"
            break
        if len(members) == most:
            reason = f"max_orbits = {most} reached"
            break
    if len(members) < 2 and throw:
        raise RuntimeError(f"no family: {reason}; give another `start`, or a smaller `step`.")
    zs = jnp.stack([member.z for member in members])
    return OrbitFamily(
        energy=jax.vmap(flow.field.energy)(zs[:, :-1]),
        period=jnp.exp(zs[:, -1]),
        x=zs[:, :-1],
        residual=jnp.asarray([member.residual for member in members], x.dtype),
        stability_indices=jnp.asarray(np.stack(index)),
        arclength=jnp.asarray([member.arclength for member in members], x.dtype),
        bifurcations=tuple(found),
        reason=reason,
    )


class _One(eqx.Module):
    """A family of one field."""

    field: AbstractCell

    def __call__(self, p: Array) -> AbstractCell:
        return self.field


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


def _followed(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The indices in the order of those before them: each the nearest that is left."""
    left, order = list(range(len(now))), []
    for old in before:
        best = min(left, key=lambda i: abs(complex(now[i]) - complex(old)))
        left.remove(best)
        order.append(best)
    return now[order] if order else now


def _crossed(before: np.ndarray, after: np.ndarray) -> list[tuple[int, str, float]]:
    """Columns that pass +2 or -2, neither of them there."""
    out = []
    for column in range(len(before)):
        low, high = complex(before[column]), complex(after[column])
        if abs(low.imag) >= ON_CIRCLE or abs(high.imag) >= ON_CIRCLE:
            continue
        for edge, kind in ((2.0, "fold or branch"), (-2.0, "period doubling")):
            a, b = low.real - edge, high.real - edge
            if a * b < 0 and min(abs(a), abs(b)) >= ON_CIRCLE:
                out.append((column, kind, edge))
    return out
