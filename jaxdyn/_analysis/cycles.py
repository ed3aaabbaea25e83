"""Families of limit cycles: one isolated orbit after the other, as a parameter changes."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._cell import AbstractCell
from .._simulate import check_number
from .._types import is_traced
from .branch import (
    LOST,
    Bifurcation,
    Branch,
    Member,
    follow,
    locate,
    moves,
    step_sizes,
)
from .crossings import ON_CIRCLE, crossings, hopf
from .flow import checked_flow, positive, whole
from .periodic import (
    TOLERANCES,
    PeriodicOrbit,
    conserves,
    linear_invariants,
    march,
)

# Members before the branch may close, and how near to its start, as a part of a step and of the
# range of the cycle.
AROUND, CLOSES = 5, 0.05
# Members in a row between which the parameter does not move, by this part of `between`.
STILL, UNMOVED = 4, 1e-9
CLOSED = "the branch closes"
# Above it a point cannot be told from a small orbit.
COARSEST = 1e-2


class CycleFamily(eqx.Module):
    """Limit cycles along a branch, one row each, by growing parameter where the branch began.

    `parameter` (p,), `period` (p,), a state `x` (p, n), `lowest` and `highest` (p, n), the range of
    each unit over the cycle, `multipliers` (p, m) of each by falling size without the trivial ones,
    `residual` (p,), `error` (p,), by how much the end of a cycle changes with twice as many steps,
    `arclength` (p,), 0 at the start; `bifurcations`, those that were located; `reasons`, why the
    branch ends at its first and at its last row.
    """

    parameter: Float[Array, " p"]
    period: Float[Array, " p"]
    x: Float[Array, "p n"]
    lowest: Float[Array, "p n"]
    highest: Float[Array, "p n"]
    multipliers: Complex[Array, "p m"]
    residual: Float[Array, " p"]
    error: Float[Array, " p"]
    arclength: Float[Array, " p"]
    bifurcations: tuple[Bifurcation, ...]
    reasons: tuple[str, str] = eqx.field(static=True)

    @property
    def stable(self) -> Array:
        """Whether no multiplier is outside the unit circle, (p,)."""
        return jnp.all(jnp.abs(self.multipliers) <= 1 + ON_CIRCLE, axis=1)

    def to_csv(self) -> str:
        """The branch as a table, without the states."""
        n, m = self.x.shape[1], self.multipliers.shape[1]
        names = [f"{end}_{i + 1}" for i in range(n) for end in ("lowest", "highest")]
        names += [f"multiplier_{i + 1}_{part}" for i in range(m) for part in ("real", "imag")]
        rows = [",".join(["parameter", "period", "arclength", "residual", "error", *names])]
        ranges = np.stack([self.lowest, self.highest], axis=2).reshape(-1, 2 * n)
        values = np.asarray(self.multipliers)
        parts = np.stack([np.real(values), np.imag(values)], axis=2).reshape(-1, 2 * m)
        columns = self.parameter, self.period, self.arclength, self.residual, self.error
        head = np.stack(columns, axis=1)
        for row in np.concatenate([head, ranges, parts], axis=1):
            rows.append(",".join(repr(float(v)) for v in row))
        return "\n".join(rows) + "\n"


def cycle_family(
    field_of: Any,
    start: Any,
    parameter: Any,
    *,
    between: Any,
    max_cycles: Any = 200,
    step: Any = 0.02,
    max_step: Any = 0.2,
    tol: Any = None,
    throw: bool = True,
) -> CycleFamily:
    r"""A branch of limit cycles as a parameter changes, by pseudo-arclength, to both sides.

    Each cycle z = (x, ln T, p / (high - low)) is predicted along the tangent of the branch and
    corrected by Levenberg-Marquardt on the return, the phase and the distance (Keller 1977), so
    that folds are passed. Where nontrivial Floquet multipliers cross the unit circle is told apart
    and located by secants: a fold (p turns back, a multiplier is 1), a branch point (a multiplier
    passes 1 and p does not turn), a period doubling (-1), a torus or Neimark-Sacker bifurcation (a
    complex pair; also where two pairs that lie on the circle meet and leave it). One that crosses
    and comes back within a step is not seen: see `max_step`. A branch that shrinks to a point ends
    there, in a Hopf bifurcation, located as the state of rest that has a pair of eigenvalues
    $\pm i \omega$.

    A network whose activation is odd, without bias and input, is the same for -x; a cycle that is
    its own mirror image loses its stability at -1 only when two multipliers meet there.

    **Arguments:**

    - `field_of`: p -> a cell, or any f(t, x, args); differentiable, p is traced. For instance
      `lambda p: eqx.tree_at(lambda c: c.damping, cell, p)`. Its cycles must be isolated.
    - `start`: a [`jaxdyn.PeriodicOrbit`][] of `field_of(parameter)`, of states of order 1. Its
      solver and `args` are those of the whole branch, and its steps, but for more where those
      leave an error above `tol`.
    - `parameter`: p of `start`.
    - `between`: (low, high), where the branch ends; `max_cycles`: how many at most to each side.
    - `step`, `max_step`: the first and the longest distance between cycles, in units of z.
    - `tol`: the largest residual; default 1e-9, and 1e-4 in float32.
    - `throw`: whether a branch that cannot be followed to either side raises.

    **Returns:** a [`jaxdyn.CycleFamily`][]; `.reasons` says for both ends whether a bound was
    reached, a Hopf bifurcation, or the branch was lost.

    **Raises:** TypeError or ValueError that names the argument; RuntimeError when `start` is no
    cycle of `field_of(parameter)`, or not even a second one is found.
    """
    low, high = _bounds(between)
    check_number("parameter", parameter, "a number")
    if is_traced(parameter) or not low <= float(parameter) <= high:
        raise ValueError(
            f"`parameter` must be concrete and in `between`, {low:g} to {high:g}; got {parameter}."
        )
    most = whole("max_cycles", max_cycles, 2)
    steps = step_sizes(step, max_step)
    branch = _branch(field_of, start, float(parameter), high - low)
    x = start.x
    tol = TOLERANCES[x.dtype == jnp.float64] if tol is None else positive("tol", tol)
    if tol > COARSEST:
        raise ValueError(f"`tol` must be at most {COARSEST:g}, got {tol:g}.")
    rest = jnp.stack([jnp.log(start.period), jnp.asarray(parameter, x.dtype) / branch.scale])
    z = jnp.concatenate([x, rest])
    branch = branch.suited(z)
    ends = march(branch.flow(z), x, start.period, branch.steps)
    off = float(jnp.max(jnp.abs(ends - x)))
    if not off <= max(tol, 10 * float(start.residual)):
        raise RuntimeError(
            f"`start` is no cycle of `field_of(parameter)`: after a period it is {off:.2g} from "
            "where it began. Give the parameter that it was found for, or find it anew."
        )
    upwards = jnp.zeros_like(z).at[-1].set(1.0)
    first, _ = branch.correct(Member(z, 0.0, upwards, jnp.eye(x.size), 0.0), 0.0)
    while (finer := branch.fine(first.z, tol)) is not branch:
        branch = finer
        first, _ = branch.correct(Member(z, 0.0, upwards, jnp.eye(x.size), 0.0), 0.0)
    if not (first.residual <= tol and moves(branch, first.z, tol)):
        raise RuntimeError(
            f"`start` cannot be corrected to `tol` = {tol:g} (residual {first.residual:.2g}); give "
            "more steps to periodic_orbit, or a larger `tol`."
        )
    first = first._replace(error=float(branch.error(first.z)))
    up = _side(branch, first, (low, high), steps, most, tol)
    back = first._replace(tangent=-first.tangent)
    down = _Side([], [], up.reason)
    if up.reason != CLOSED:
        down = _side(branch, back, (low, high), steps, most, tol)
    members = [*reversed(down.members), first, *up.members]
    if len(members) < 2 and not (down.found or up.found) and throw:
        raise RuntimeError(
            f"no family: {down.reason}, and {up.reason}; give a smaller `step`, or a better "
            "`start`."
        )
    count = len(down.members)
    found = [dataclasses.replace(b, arclength=-b.arclength) for b in reversed(down.found)]
    zs = jnp.stack([member.z for member in members])
    lowest, highest = zip(*(branch.extremes(z) for z in zs), strict=True)
    lengths = np.array([member.arclength for member in members])
    lengths[:count] *= -1
    return CycleFamily(
        parameter=jnp.clip(jax.vmap(branch.parameter)(zs), low, high),
        period=jnp.exp(zs[:, x.size]),
        x=zs[:, : x.size],
        lowest=jnp.stack(lowest),
        highest=jnp.stack(highest),
        multipliers=jnp.stack([branch.multipliers(member) for member in members]),
        residual=jnp.asarray([member.residual for member in members], x.dtype),
        error=jnp.asarray([member.error for member in members], x.dtype),
        arclength=jnp.asarray(lengths, x.dtype),
        bifurcations=(*found, *up.found),
        reasons=(down.reason, up.reason),
    )


def _bounds(between: Any) -> tuple[float, float]:
    try:
        low, high = between
    except (TypeError, ValueError):
        raise TypeError(f"`between` must be two numbers, (low, high), got {between!r}.") from None
    for value in (low, high):
        if is_traced(value):
            raise TypeError("`between` must be concrete: how long a branch is depends on it.")
        check_number("between", value, "two finite numbers (low, high)")
    if not float(low) < float(high):
        raise ValueError(f"`between` must be (low, high) with low < high, got {between!r}.")
    return float(low), float(high)


def _branch(field_of: Any, start: Any, parameter: float, scale: float) -> Branch:
    if not isinstance(start, PeriodicOrbit):
        raise TypeError(f"`start` must be what jaxdyn.periodic_orbit returned, got {start!r}.")
    if is_traced(start):
        raise ValueError("`start` must be concrete: how long a branch is depends on its values.")
    if start.x.ndim != 1:
        raise ValueError(f"`start` must be one orbit, got a batch of shape {start.x.shape[:-1]}.")
    if not bool(start.converged):
        raise ValueError(f"`start` is no orbit: {start.reason}.")
    if not callable(field_of) or isinstance(field_of, type | AbstractCell):
        raise TypeError(
            "`field_of` must be a function of the parameter that returns a cell or a field "
            f"f(t, x, args), got {field_of!r}."
        )
    x, args = start.x, start.flow.args
    p = jnp.asarray(parameter, x.dtype)
    field = field_of(p)
    if isinstance(field, AbstractCell) and conserves(field):
        raise ValueError(
            "`field_of` gives a cell that conserves its energy, whose orbits are no isolated "
            "cycles but come in families already; follow one with jaxdyn.orbit_family."
        )
    cell = isinstance(field, AbstractCell)
    if not cell and start.normals.shape[0]:
        raise ValueError(
            "`start` was made with `invariants`: its field conserves something, so that its orbits "
            "are no isolated cycles, which is what can be followed in a parameter."
        )
    try:
        flow, x = checked_flow(field, x, start.flow.solver, args, name="start.x")
    except (TypeError, ValueError) as e:
        raise type(e)(str(e).replace("`field`", "`field_of(parameter)`")) from None
    try:
        rate = eqx.filter_eval_shape(lambda p: _rate(field_of, p, x, args), p)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as e:
        raise TypeError(
            "`field_of` must do with a traced parameter, whose value is not known: use jax.numpy, "
            "and work out what needs values, such as W.kernel(), outside of it."
        ) from e
    if not cell and rate.dtype != x.dtype:
        raise TypeError(
            f"`field_of(parameter)` must return x' of the dtype of its state, {x.dtype}; got "
            f"{rate.dtype}."
        )
    rows = linear_invariants(flow.field, x) if cell else jnp.zeros((0, x.size), x.dtype)
    scale_ = jnp.asarray(scale, x.dtype)
    return Branch(field_of, flow.solver, flow.args, rows, scale_, jnp.asarray(start.steps))


def _rate(field_of: Any, p: Array, x: Array, args: Any) -> Array:
    return field_of(p)(jnp.zeros_like(p), x, args)


class _Side(NamedTuple):
    """What lies to one side of the start; arclengths count from there."""

    members: list[Member]
    found: list[Bifurcation]
    reason: str


def _side(
    branch: Branch,
    first: Member,
    between: tuple[float, float],
    steps: tuple[float, float],
    most: int,
    tol: float,
) -> _Side:
    low, high = between
    rounding = 8 * float(jnp.finfo(first.z.dtype).eps) * max(abs(low), abs(high))
    members: list[Member] = []
    found: list[Bifurcation] = []

    def p(member: Member) -> float:
        return float(branch.parameter(member.z))

    def reached(bound: float) -> _Side:
        return _Side(members, found, f"parameter = {bound:g} reached")

    for bound, way in ((low, -1.0), (high, 1.0)):
        if way * float(first.tangent[-1]) > 0 and abs(p(first) - bound) <= rounding:
            return reached(bound)
    last = first
    for on, new in follow(branch, first, *steps, tol):
        if float(on.rate(new.z) @ on.rate(last.z)) < 0:
            # Through the centre and out on the other side, where the same cycles come again.
            birth = hopf(on, last, new)
            if birth is None:
                return _Side(members, found, "the cycles shrink to a point")
            if not low <= birth.at <= high:
                return reached(low if birth.at < low else high)
            found.append(birth)
            return _Side(members, found, f"Hopf bifurcation at parameter = {birth.at:g}")
        bound = low if p(new) < low - rounding else high if p(new) > high + rounding else None
        member = new
        if bound is not None:
            member = locate(on, last, last, new, lambda m, bound=bound: p(m) - bound, tol)
            if member is None:
                return _Side(members, found, LOST)
        if not _keeps(on, member):
            return _Side(members, found, "the cell's linear invariants change with the parameter")
        found += crossings(on, last, member, tol)
        closed = len(members) >= AROUND and _closes(on, first, last, member)
        last = member
        members.append(member._replace(error=float(on.error(member.z))))
        if bound is not None:
            return reached(bound)
        if closed:
            return _Side(members, found, CLOSED)
        if len(members) == most:
            return _Side(members, found, f"max_cycles = {most} reached")
        moved = [abs(float(m.z[-1] - first.z[-1])) for m in members[:STILL]]
        if len(members) == STILL and max(moved) < UNMOVED:
            raise RuntimeError(
                "`start` is no isolated cycle: there are others at the same `parameter`, as where "
                "the field conserves something. Move `parameter` away from there; follow cells "
                "that conserve their energy with jaxdyn.orbit_family; give a shell on singular W "
                "keep=operator.kernel()."
            )
    # Small cycles may be lost before their centre is passed; it is looked for through it.
    birth = hopf(branch, last, _opposite(branch, last))
    if birth is not None and low <= birth.at <= high:
        found.append(birth)
        return _Side(members, found, f"Hopf bifurcation at parameter = {birth.at:g}")
    return _Side(members, found, LOST)


def _opposite(branch: Branch, member: Member) -> Member:
    """What a cycle would be on its other side, if it were a circle."""
    lowest, highest = branch.extremes(member.z)
    x = lowest + highest - branch.x(member.z)
    return member._replace(z=jnp.concatenate([x, member.z[branch.size :]]))


def _keeps(branch: Branch, member: Member) -> bool:
    """Whether the linear invariants of the branch are those of this member."""
    if not branch.rows.shape[0]:
        return True
    rows = linear_invariants(branch.flow(member.z).field, branch.x(member.z))
    return rows.shape == branch.rows.shape and bool(jnp.allclose(rows, branch.rows))


def _closes(branch: Branch, first: Member, last: Member, new: Member) -> bool:
    """Whether the first member lies between two others, its phase aside, gone through as it was."""
    n = branch.size
    a, b, c = (np.asarray(m.z[n:]) for m in (first, last, new))
    step = b - c
    if np.asarray(first.tangent[n:]) @ step > 0 or step @ step == 0:
        return False
    share = np.clip((a - c) @ step / (step @ step), 0, 1)
    if np.linalg.norm(a - c - share * step) > CLOSES * np.linalg.norm(new.z - last.z):
        return False
    here, there = (np.stack(branch.extremes(m.z)) for m in (first, new))
    before = np.stack(branch.extremes(last.z))
    between = there + share * (before - there)
    return bool(np.max(np.abs(here - between)) <= CLOSES * np.max(np.ptp(here, axis=0)))
