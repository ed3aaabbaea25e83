"""One closed orbit after the other, by pseudo-arclength, and points located on the way."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._cell import AbstractCell, cast
from .._solver import Taylor
from .flow import Flow, positive
from .periodic import STEPS, TAYLOR_STEP, least_squares, march, nontrivial, with_tangents

# A step that needs so few corrections may grow, one that needs so many shrinks.
FEW, MANY = 6, 10
GROW, SHRINK, SMALLEST = 1.4, 0.5, 1e-6
CORRECTIONS = 12
# What is predicted is near: Newton's steps, as good as undamped.
DAMPING = 1e-9
# The cosine between the tangents of two members.
TURNED = 0.8
LOCATE = 60
MOST_STEPS = 2**16
LOST = "the branch was lost: no orbit within the smallest step"


def step_sizes(step: Any, max_step: Any) -> tuple[float, float]:
    """**Raises:** TypeError or ValueError that names the argument."""
    first, longest = positive("step", step), positive("max_step", max_step)
    if not SMALLEST <= first <= longest:
        raise ValueError(
            f"`step` must be at least {SMALLEST:g} and at most `max_step` = {longest:g}, got "
            f"{first:g}."
        )
    return first, longest


class Bifurcation(eqx.Module):
    """Where the stability of an orbit changes, between two members of a family.

    `kind`: "fold or branch" and "period doubling" in a family of a conservative cell, whose pairs
    of multipliers meet at 1 and at -1; "fold", "branch point", "period doubling", "torus" and
    "Hopf" in a family of limit cycles. `at`, the energy or the parameter there; `period`; a state
    `x` (n,) of the orbit, or the state of rest of a Hopf bifurcation; `arclength`, where on the
    branch, among those of its members or beyond its end.
    """

    kind: str = eqx.field(static=True)
    at: float = eqx.field(static=True)
    period: float = eqx.field(static=True)
    x: Float[Array, " n"]
    arclength: float = eqx.field(static=True)


class Member(NamedTuple):
    """An orbit of a branch: z = (x, ln T) or (x, ln T, p / scale), the unit tangent of the branch
    there, how far along the branch it is, and the error of its period's solve."""

    z: Array
    residual: float
    tangent: Array
    monodromy: Array
    arclength: float
    error: float = math.nan


class Branch(eqx.Module):
    """The closed orbits of `field_of(p)`, in z = (x, ln T, p / scale), or (x, ln T) of one field.

    `rows` (d, n) are linear invariants, whose values the members share; `scale` is the unit of p,
    0 where there is none; `steps`, in one period.
    """

    field_of: Callable
    solver: Any
    args: Any
    rows: Float[Array, "d n"]
    scale: Float[Array, ""]
    steps: Array

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    def x(self, z: Array) -> Float[Array, " n"]:
        return z[: self.size]

    def period(self, z: Array) -> float:
        return float(jnp.exp(z[self.size]))

    def parameter(self, z: Array) -> Float[Array, ""]:
        """p, of which one field takes no notice."""
        return z[-1] * self.scale

    def flow(self, z: Array) -> Flow:
        field = self.field_of(self.parameter(z))
        if isinstance(field, AbstractCell):
            field = cast(field, z.dtype)
        return Flow(field, self.solver, self.args)

    @eqx.filter_jit
    def rate(self, z: Array) -> Float[Array, " n"]:
        """x'; compiled, and p traced, as a field may refuse a p that is only tried."""
        return self.flow(z).rate(jnp.zeros((), z.dtype), self.x(z))

    def suited(self, z: Array) -> "Branch":
        """With as many steps as make Taylor exact for somewhat longer a period."""
        if not isinstance(self.solver, Taylor):
            return self
        norm = float(np.max(np.asarray(self.flow(z).field.operator.frequencies()), initial=0.0))
        needed = max(16, math.ceil(1.5 * self.period(z) * norm / TAYLOR_STEP))
        return dataclasses.replace(self, steps=jnp.asarray(needed))

    def shoot(self, z: Array, before: Array, tangent: Array, ahead: Array) -> tuple[Array, ...]:
        """Return, phase against the orbit `before`, invariants, and distance along the tangent;
        their derivative by z, and the monodromy."""
        n = self.size
        x, period, rest = z[:n], jnp.exp(z[n]), z[n + 1 :]

        def flow(rest):
            return self.flow(jnp.concatenate([z[: n + 1], rest]))

        at, columns = with_tangents(flow, x, rest, period, self.steps)
        rate = self.rate(before)
        rate = rate / jnp.linalg.norm(rate)
        moved = z - before
        return_, phase = at - x, (rate @ moved[:n])[None]
        r = jnp.concatenate(
            [return_, phase, self.rows @ moved[:n], (tangent @ moved - ahead)[None]]
        )
        by_x = jnp.concatenate([columns[:, :n] - jnp.eye(n, dtype=z.dtype), rate[None], self.rows])
        by_rest = jnp.zeros((by_x.shape[0], z.size - n), z.dtype)
        by_rest = by_rest.at[:n, 0].set(period * flow(rest).rate(jnp.zeros((), z.dtype), at))
        by_rest = by_rest.at[:n, 1:].set(columns[:, n:])
        jacobian = jnp.concatenate([by_x, by_rest], axis=1)
        return r, jnp.concatenate([jacobian, tangent[None]]), columns[:, :n]

    @eqx.filter_jit
    def _correct(self, before: Array, tangent: Array, ahead: Array) -> tuple[Array, ...]:
        shoot = lambda z: self.shoot(z, before, tangent, ahead)  # noqa: E731
        start = before + ahead * tangent
        z, r, jacobian, monodromy, count = least_squares(shoot, start, CORRECTIONS, DAMPING)
        # Undamped: along the amplitude of a small orbit any damping is large.
        z = z - jnp.linalg.pinv(jacobian) @ r
        x = self.x(z)
        off = jnp.max(jnp.abs(march(self.flow(z), x, jnp.exp(z[self.size]), self.steps) - x))
        _, _, rows = jnp.linalg.svd(jacobian[:-1])
        along = rows[-1] * jnp.sign(rows[-1] @ tangent)
        return z, off, along, monodromy, count

    def correct(self, before: Member, ahead: float) -> tuple[Member, int]:
        """The orbit at the distance `ahead`, and how many corrections it took."""
        dtype = before.z.dtype
        z, residual, along, monodromy, count = self._correct(
            before.z, before.tangent, jnp.asarray(ahead, dtype)
        )
        return Member(z, float(residual), along, monodromy, before.arclength + ahead), int(count)

    @eqx.filter_jit
    def error(self, z: Array) -> Float[Array, ""]:
        """By how much the end of the orbit changes with twice as many steps."""
        flow, x, period = self.flow(z), self.x(z), jnp.exp(z[self.size])
        ends = (march(flow, x, period, k * self.steps) for k in (1, 2))
        return jnp.max(jnp.abs(next(ends) - next(ends)))

    def fine(self, z: Array, tol: float) -> "Branch":
        """With twice as many steps where those are too few, up to 2^16."""
        if isinstance(self.solver, Taylor) or int(self.steps) > MOST_STEPS // 2:
            return self
        enough = float(self.error(z)) <= tol
        return self if enough else dataclasses.replace(self, steps=2 * self.steps)

    @eqx.filter_jit
    def _multipliers(self, z: Array, monodromy: Array, normals: Array) -> Complex[Array, " m"]:
        return nontrivial(self.rate(z), normals, monodromy)

    def multipliers(
        self, member: Member, normals: Float[Array, "q n"] | None = None
    ) -> Complex[Array, " m"]:
        """Those that are not trivial, by falling size; `normals`, the gradients of what is
        conserved beside the linear invariants."""
        rows = self.rows if normals is None else jnp.concatenate([normals, self.rows])
        return self._multipliers(member.z, member.monodromy, rows)

    @eqx.filter_jit
    def extremes(self, z: Array) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The lowest and highest value of each unit, at STEPS or more times of the orbit."""
        flow, steps = self.flow(z), jnp.maximum(self.steps, STEPS)
        zero, dt = jnp.zeros((), z.dtype), jnp.exp(z[self.size]) / steps

        def step(_, carry):
            x, low, high = carry
            x = flow.advance(zero, dt, x)
            return x, jnp.minimum(low, x), jnp.maximum(high, x)

        x = self.x(z)
        return jax.lax.fori_loop(0, steps, step, (x, x, x))[1:]


def follow(
    branch: Branch, first: Member, step: float, longest: float, tol: float
) -> Iterator[tuple[Branch, Member]]:
    """The members after the first one, each with the branch as suits the step that led to it; ends
    where there is none within the smallest step.

    An orbit that is further off than twice the distance asked for, as one whose period jumps or
    falls towards 0, is refused, and so is a point of rest. Where twice as many steps of the solver
    move the end of the orbit by more than `tol`, so many are taken from there on.
    """
    last, ds = first, step
    while ds >= SMALLEST:
        branch = branch.suited(last.z)
        new, count = branch.correct(last, ds)
        near = float(jnp.linalg.norm(new.z - last.z)) <= 2 * ds
        turned = float(new.tangent @ last.tangent)
        if not (new.residual <= tol and turned > TURNED and near and moves(branch, new.z, tol)):
            ds *= SHRINK
            continue
        finer = branch.fine(new.z, tol)
        if finer is not branch:
            branch = finer
            continue
        yield branch, new
        last = new
        if count <= FEW:
            ds = min(longest, GROW * ds)
        elif count >= MANY:
            ds = max(SMALLEST, SHRINK * ds)


def moves(branch: Branch, z: Array, tol: float) -> bool:
    """Whether z is no point of rest, whose every period is one."""
    return float(jnp.linalg.norm(branch.rate(z))) * branch.period(z) > 10 * tol


def locate(
    branch: Branch,
    base: Member,
    low: Member,
    high: Member,
    value: Callable[[Member], float],
    tol: float,
) -> Member | None:
    """The member between `low` and `high`, both a step away from `base`, at which `value` is 0, by
    secants and halvings; None where it has the same sign at both, or is lost."""
    a, fa = low.arclength - base.arclength, value(low)
    b, fb = high.arclength - base.arclength, value(high)
    if (fa < 0) == (fb < 0):
        return None
    scale, width, at, f = max(abs(fa), abs(fb)), b - a, high, fb
    for i in range(LOCATE):
        if abs(f) < 1e-11 * scale or b - a < 1e-12 * width:
            break
        middle = a - fa * (b - a) / (fb - fa) if i % 3 != 2 else 0.5 * (a + b)
        at, _ = branch.correct(base, middle)
        f = value(at)
        if (f < 0) == (fa < 0):
            a, fa = middle, f
        else:
            b, fb = middle, f
    return at if at.residual <= tol else None
