"""Families of limit cycles: one isolated orbit after the other, as a parameter changes."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._cell import AbstractCell
from .._simulate import check_number
from .._types import is_traced
from .branch import LOST, Bifurcation, Branch, Member, follow, locate, moves
from .flow import checked_flow, positive, whole
from .periodic import (
    TOLERANCES,
    PeriodicOrbit,
    conserves,
    least_squares,
    linear_invariants,
)

# | |multiplier| - 1 | below this is rounding.
ON_CIRCLE = 1e-6
# Corrections of the state of rest at a Hopf bifurcation, and how far its turn may differ from the
# last cycle's, as a part of it.
HOPF_CORRECTIONS, HOPF_TURN = 30, 0.2


class CycleFamily(eqx.Module):
    """Limit cycles along a branch, one row each, by growing parameter where the branch began.

    `parameter` (p,), `period` (p,), a state `x` (p, n), `lowest` and `highest` (p, n), the range of
    each unit over the cycle, `multipliers` (p, m) of each by falling size without the trivial ones,
    `residual` (p,), `arclength` (p,), 0 at the start; `bifurcations`, those that were located;
    `reasons`, why the branch ends at its first and at its last row.
    """

    parameter: Float[Array, " p"]
    period: Float[Array, " p"]
    x: Float[Array, "p n"]
    lowest: Float[Array, "p n"]
    highest: Float[Array, "p n"]
    multipliers: Complex[Array, "p m"]
    residual: Float[Array, " p"]
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
        rows = [",".join(["parameter", "period", "arclength", "residual", *names])]
        ranges = np.stack([self.lowest, self.highest], axis=2).reshape(-1, 2 * n)
        values = np.asarray(self.multipliers)
        parts = np.stack([np.real(values), np.imag(values)], axis=2).reshape(-1, 2 * m)
        head = np.stack([self.parameter, self.period, self.arclength, self.residual], axis=1)
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
    that folds are passed. On the way the nontrivial Floquet multipliers tell, by sign changes that
    are located by secants: a fold (p turns back, a multiplier is 1), a branch point (a multiplier
    passes 1 and p does not turn), a period doubling (-1), a torus or Neimark-Sacker bifurcation (a
    complex pair crosses the unit circle). A branch that shrinks to a point ends there, in a Hopf
    bifurcation, located as the state of rest that has a pair of eigenvalues $\pm i \omega$.

    A network whose activation is odd, without bias and input, is the same for -x; a cycle that is
    its own mirror image loses its stability at -1 only when two multipliers meet there.

    **Arguments:**

    - `field_of`: p -> a cell, or any f(t, x, args); differentiable, as for instance
      `lambda p: eqx.tree_at(lambda c: c.damping, cell, p)`.
    - `start`: a [`jaxdyn.PeriodicOrbit`][] of `field_of(parameter)`; its solver, steps and `args`
      are those of the whole branch, but Taylor takes more steps for longer periods.
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
    ds, longest = positive("step", step), positive("max_step", max_step)
    branch = _branch(field_of, start, float(parameter), high - low)
    x = start.x
    tol = TOLERANCES[x.dtype == jnp.float64] if tol is None else positive("tol", tol)
    rest = jnp.stack([jnp.log(start.period), jnp.asarray(parameter, x.dtype) / branch.scale])
    z = jnp.concatenate([x, rest])
    branch = branch.suited(z)
    upwards = jnp.zeros_like(z).at[-1].set(1.0)
    first, _ = branch.correct(Member(z, 0.0, upwards, jnp.eye(x.size), 0.0), 0.0)
    if not (first.residual <= tol and moves(branch, first.z, tol)):
        raise RuntimeError(
            f"`start` is no cycle of `field_of(parameter)` (residual {first.residual:.2g})."
        )
    down, up = (
        _side(
            branch,
            first._replace(tangent=sign * first.tangent),
            (low, high),
            (ds, longest),
            most,
            tol,
        )
        for sign in (-1.0, 1.0)
    )
    members = [*reversed(down.members), first, *up.members]
    count = len(down.members)
    if len(members) < 2 and not (down.found or up.found) and throw:
        raise RuntimeError(f"no family: {up.reason}; give a smaller `step`, or a better `start`.")
    # What lies behind the k-th member on the way down lies before it in the table.
    found = [dataclasses.replace(b, after=count - 1 - b.after) for b in reversed(down.found)]
    found += [dataclasses.replace(b, after=count + b.after) for b in up.found]
    zs = jnp.stack([member.z for member in members])
    lowest, highest = zip(*(branch.extremes(z) for z in zs), strict=True)
    lengths = np.array([member.arclength for member in members])
    lengths[:count] *= -1
    return CycleFamily(
        parameter=jax.vmap(branch.parameter)(zs),
        period=jnp.exp(zs[:, x.size]),
        x=zs[:, : x.size],
        lowest=jnp.stack(lowest),
        highest=jnp.stack(highest),
        multipliers=jnp.stack([branch.multipliers(member) for member in members]),
        residual=jnp.asarray([member.residual for member in members], x.dtype),
        arclength=jnp.asarray(lengths, x.dtype),
        bifurcations=tuple(found),
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
    if not bool(start.converged):
        raise ValueError(f"`start` is no orbit: {start.reason}.")
    if not callable(field_of) or isinstance(field_of, type | AbstractCell):
        raise TypeError(
            "`field_of` must be a function of the parameter that returns a cell or a field "
            f"f(t, x, args), got {field_of!r}."
        )
    field = field_of(jnp.asarray(parameter, start.x.dtype))
    if isinstance(field, AbstractCell) and conserves(field):
        raise ValueError(
            "`field_of` gives a cell that conserves its energy, whose orbits are no isolated "
            "cycles but come in families already; follow one with jaxdyn.orbit_family."
        )
    try:
        flow, x = checked_flow(field, start.x, start.flow.solver, start.flow.args, name="start.x")
    except (TypeError, ValueError) as e:
        raise type(e)(str(e).replace("`field`", "`field_of(parameter)`")) from None
    cell = isinstance(flow.field, AbstractCell)
    rows = linear_invariants(flow.field, x) if cell else jnp.zeros((0, x.size), x.dtype)
    scale_ = jnp.asarray(scale, x.dtype)
    return Branch(field_of, flow.solver, flow.args, rows, scale_, jnp.asarray(start.steps))


class _Side(NamedTuple):
    """What lies to one side of the start: `after` in `found` counts from the start, 0."""

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
    members: list[Member] = []
    found: list[Bifurcation] = []

    def p(member: Member) -> float:
        return float(branch.parameter(member.z))

    ahead = math.copysign(1.0, float(first.tangent[-1]))
    for bound, way in ((low, -1.0), (high, 1.0)):
        if way == ahead and p(first) == bound:
            return _Side(members, found, f"parameter = {bound:g} reached")
    last, tests = first, _tests(branch, first)
    for on, new in follow(branch, first, *steps, tol):
        if float(on.rate(new.z) @ on.rate(last.z)) < 0:
            # Through the centre and out on the other side, where the same cycles come again.
            hopf = _hopf(on, last, new)
            if hopf is None:
                return _Side(members, found, "the cycles shrink to a point")
            found.append(dataclasses.replace(hopf, after=len(members)))
            return _Side(members, found, f"Hopf bifurcation at parameter = {hopf.at:g}")
        bound = low if p(new) < low else high if p(new) > high else None
        member = new
        if bound is not None:
            member = locate(on, last, new, lambda m, bound=bound: p(m) - bound, tol) or new
        now = _tests(on, member)
        for kind in _changed(tests, now):

            def value(m: Member, on: Branch = on, kind: str = kind) -> float:
                return _tests(on, m)[kind].value

            at = locate(on, last, member, value, tol)
            if at is not None and _tests(on, at)[kind].near < 1e2 * ON_CIRCLE:
                x, T = on.x(at.z), on.period(at.z)
                found.append(Bifurcation(kind, p(at), T, x, after=len(members)))
        last, tests = member, now
        members.append(member)
        if bound is not None:
            return _Side(members, found, f"parameter = {bound:g} reached")
        if len(members) == most:
            return _Side(members, found, f"max_cycles = {most} reached")
    return _Side(members, found, LOST)


class _Test(NamedTuple):
    """`value` changes its sign at a bifurcation; `near`, how far the multipliers are from it."""

    value: float
    near: float


def _tests(branch: Branch, member: Member) -> dict[str, _Test]:
    m = np.asarray(branch.multipliers(member), np.complex128)
    i, j = np.triu_indices(m.size, 1)
    pairs = m[i] * m[j] - 1
    # Two real multipliers 1 / mu and mu are none.
    turning = np.abs(np.imag(m[i])) > ON_CIRCLE
    sizes = np.where(turning, np.abs(pairs), np.inf)
    return {
        "fold": _Test(float(member.tangent[-1]), float(np.min(np.abs(m - 1), initial=np.inf))),
        "branch point": _product(m - 1),
        "period doubling": _product(m + 1),
        "torus": _Test(_product(pairs).value, float(np.min(sizes, initial=np.inf))),
    }


def _product(factors: np.ndarray) -> _Test:
    near = float(np.min(np.abs(factors), initial=np.inf))
    return _Test(float(np.real(np.prod(factors))), near)


def _changed(before: dict[str, _Test], after: dict[str, _Test]) -> list[str]:
    """What happens between two members, neither of which is there to rounding."""
    out = []
    for kind, a in before.items():
        b = after[kind]
        sure = kind == "fold" or min(a.near, b.near) >= ON_CIRCLE
        if sure and (a.value < 0) != (b.value < 0):
            out.append(kind)
    return [kind for kind in out if not (kind == "branch point" and "fold" in out)]


def _hopf(branch: Branch, before: Member, after: Member) -> Bifurcation | None:
    """The state of rest with eigenvalues +-i omega between two cycles, by Newton on
    f = 0, A u = -omega w, A w = omega u for (x, u, w, omega, p), |u| fixed by c.u = 1, c.w = 0."""
    n = branch.size
    x0, x1 = branch.x(before.z), branch.x(after.z)
    speeds = jnp.stack([jnp.linalg.norm(branch.rate(m.z)) for m in (before, after)])
    middle = (before.z * speeds[1] + after.z * speeds[0]) / jnp.sum(speeds)
    c = (x1 - x0) / jnp.linalg.norm(x1 - x0)
    turn = 2 * jnp.pi * jnp.exp(-middle[n])

    def field(x, p):
        z = jnp.concatenate([x, middle[n, None], p[None]])
        return branch.rate(z)

    def equations(y):
        x, u, w = y[: 3 * n].reshape(3, n)
        omega, p = y[3 * n] * turn, y[-1]
        rest, turned = jax.linearize(lambda x: field(x, p), x)
        return jnp.concatenate(
            [
                rest,
                turned(u) + omega * w,
                turned(w) - omega * u,
                jnp.stack([c @ u - 1, c @ w]),
                branch.rows @ (x - x0),
            ]
        )

    def shoot(y):
        return equations(y), jax.jacfwd(equations)(y), jnp.zeros(())

    _, turned = jax.linearize(lambda x: field(x, middle[-1]), middle[:n])
    one = jnp.ones((), x0.dtype)
    guess = jnp.concatenate([middle[:n], c, -turned(c) / turn, one[None], middle[-1:]])
    y, r, *_ = jax.jit(lambda guess: least_squares(shoot, guess, HOPF_CORRECTIONS))(guess)
    p, width = float(y[-1]), float(jnp.linalg.norm(after.z - before.z))
    good = float(jnp.max(jnp.abs(r))) < 1e-3 * float(jnp.sqrt(jnp.finfo(x0.dtype).eps))
    good &= abs(float(y[3 * n]) - 1) < HOPF_TURN
    good &= abs(p - float(middle[-1])) <= width
    if not good:
        return None
    period = 2 * math.pi / (float(y[3 * n]) * float(turn))
    return Bifurcation("Hopf", p * float(branch.scale), period, y[:n], after=0)
