"""Where a branch of limit cycles changes its stability: multipliers that cross the unit circle."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from .branch import Bifurcation, Branch, Member, locate
from .periodic import least_squares

# | |multiplier| - 1 | below this is rounding.
ON_CIRCLE = 1e-6
# A step in which several multipliers cross is halved so often to tell them apart.
HALVINGS = 20
# Corrections of the state of rest at a Hopf bifurcation, and how far its turn may differ from the
# last cycle's, as a part of it.
HOPF_CORRECTIONS, HOPF_TURN = 30, 0.2

KINDS = ("branch point", "period doubling", "torus")


def crossings(branch: Branch, base: Member, after: Member, tol: float) -> list[Bifurcation]:
    """Folds, branch points, period doublings and torus bifurcations between two members."""
    found, parameter = [], lambda m: float(m.tangent[-1])
    turn = locate(branch, base, base, after, parameter, tol)
    if turn is not None:
        found.append(_bifurcation(branch, "fold", turn))
    for low, high, kind in _changes(branch, base, base, after, HALVINGS):
        at = _crossing(branch, base, low, high, kind, tol)
        if at is None:
            continue
        # At a fold, too, a multiplier passes 1.
        near = 1e-2 * (after.arclength - base.arclength)
        if kind == 0 and turn is not None and abs(at.arclength - turn.arclength) < near:
            continue
        found.append(_bifurcation(branch, KINDS[kind], at))
    return sorted(found, key=lambda point: point.arclength)


def _bifurcation(branch: Branch, kind: str, at: Member) -> Bifurcation:
    p = float(branch.parameter(at.z))
    return Bifurcation(kind, p, branch.period(at.z), branch.x(at.z), at.arclength)


def _parted(branch: Branch, member: Member) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far outside the circle multipliers are, the furthest first: positive ones, negative ones
    and, each pair once, complex ones."""
    m = np.asarray(branch.multipliers(member), np.complex128)
    turned = np.abs(m.imag) > ON_CIRCLE
    parts = m[~turned & (m.real > 0)], m[~turned & (m.real <= 0)], m[turned & (m.imag > 0)]
    ahead, behind, around = (np.sort(np.abs(part) - 1)[::-1] for part in parts)
    return ahead, behind, around


def _outside(branch: Branch, member: Member) -> np.ndarray:
    return np.array([np.sum(part > ON_CIRCLE) for part in _parted(branch, member)])


def _changes(
    branch: Branch, base: Member, low: Member, high: Member, halvings: int
) -> Iterator[tuple[Member, Member, int]]:
    """Pieces of a step in which one multiplier, or one complex pair, crosses the circle; or more
    of them at one and the same place."""
    change = _outside(branch, high) - _outside(branch, low)
    # Multipliers that meet outside turn from two real ones into a complex pair: no crossing.
    if change[0] + change[1] + 2 * change[2] == 0 and not np.any(change[:2] % 2):
        return
    if np.sum(np.abs(change)) == 1 or not halvings:
        yield low, high, int(np.argmax(np.abs(change)))
        return
    ahead = 0.5 * (low.arclength + high.arclength) - base.arclength
    middle, _ = branch.correct(base, ahead)
    yield from _changes(branch, base, low, middle, halvings - 1)
    yield from _changes(branch, base, middle, high, halvings - 1)


def _crossing(
    branch: Branch, base: Member, low: Member, high: Member, kind: int, tol: float
) -> Member | None:
    which = max(_outside(branch, low)[kind], _outside(branch, high)[kind]) - 1

    def beyond(edge: float) -> Callable[[Member], float]:
        def value(member: Member) -> float:
            part = _parted(branch, member)[kind]
            return float(part[which]) - edge if which < len(part) else -1.0

        return value

    # Where others of its kind lie on the circle to rounding, or it does at `low` already.
    still = np.any(np.abs(_parted(branch, low)[kind]) <= ON_CIRCLE)
    return locate(branch, base, low, high, beyond(ON_CIRCLE if still else 0.0), tol)


def hopf(branch: Branch, before: Member, after: Member) -> Bifurcation | None:
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
    # Within the step about as far as the parameter says.
    ahead = before.arclength + 0.5 * width
    return Bifurcation("Hopf", p * float(branch.scale), period, y[:n], ahead)
