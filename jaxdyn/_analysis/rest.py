"""Where a cell rests, in closed form: W s(x) = -b for any of our activations."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._activation import AbstractActivation
from .._cell import AbstractCell, AntisymmetricCell, PoissonCell, check_constant, is_constant_input
from .._skew import AbstractSkewOperator
from .._types import Args

# A complex matrix of this size takes 256 MiB.
MAX_UNITS = 4096
# An activation is inverted over |x| <= sinh(_REACH), about 1e18; its square fits into float32.
_REACH = 42.0
# Rounding errors within which s counts as the limit of the activation: x is then unknown.
AT_LIMIT = 4
# Newton iterates beyond this have run away.
_FAR = 1e6


def check_size(n: int, name: str) -> None:
    if n > MAX_UNITS:
        raise ValueError(
            f"`{name}` has {n} units, and dense eigenvalue problems are solved up to {MAX_UNITS}; "
            "take fewer."
        )


class Answer(NamedTuple):
    """What the closed form says: a point, none, or that a search has to."""

    note: str
    point: np.ndarray | None = None
    search: bool = False
    directions: np.ndarray | None = None
    spectrum: np.ndarray | None = None


def _undecided(why: str) -> Answer:
    return Answer(f"{why} Newton's method has to search from `starts`.", search=True)


def rest_of_cell(cell: AbstractCell, args: Args, tol: float) -> Answer:
    check_size(cell.size, "field")
    if not is_constant_input(args):
        raise ValueError(
            "`args` must be a constant input (m,): points of rest move with u(t). Pass its value "
            "at one time."
        )
    if args is not None:
        check_constant(args, "args")
    drive = cell.drive(0.0, args)
    if not isinstance(cell, PoissonCell | AntisymmetricCell):
        return _undecided(f"No closed form is known for {type(cell).__name__}.")
    b = np.zeros(cell.size) if drive is None else np.asarray(drive, np.float64)
    system = _System(cell.operator, cell.damping)
    if isinstance(cell, AntisymmetricCell):
        return _rest_of_antisymmetric(cell, system, b, tol)
    if cell.regulator is not None:
        return _rest_on_shell(cell, system, b)
    return _rest_of_poisson(cell, system, b, tol)


class _System:
    """A = W - diag(damping), split by its singular values into range and kernel."""

    def __init__(self, operator: AbstractSkewOperator, damping: Array | None = None):
        self.matrix = np.asarray(operator.as_matrix(), np.float64)
        self.damped = damping is not None and bool(np.any(np.asarray(damping) != 0))
        if self.damped:
            gamma = np.broadcast_to(np.asarray(damping, np.float64), operator.size)
            self.matrix = self.matrix - np.diag(gamma)
        u, s, vh = np.linalg.svd(self.matrix)
        rank = int(np.sum(s > operator.size * float(jnp.finfo(operator.dtype).eps) * s[0]))
        self._solve = vh[:rank].T / s[:rank] @ u[:, :rank].T
        self._left = u[:, rank:]
        self.range = vh[:rank].T
        self.kernel = vh[rank:].T

    @property
    def singular(self) -> bool:
        return self.kernel.shape[1] > 0

    def solve(self, rhs: np.ndarray) -> np.ndarray:
        """The shortest v with A v = rhs."""
        return self._solve @ rhs

    def unreachable(self, rhs: np.ndarray, tol: float) -> str | None:
        """Why A v = rhs has no solution, if it has none."""
        outside = float(np.linalg.norm(self._left.T @ rhs))
        size = float(np.linalg.norm(rhs))
        if outside <= tol * size:
            return None
        return (
            f"The part of the right-hand side outside the range of W - damping, {outside:.3g} of "
            f"{size:.3g}, is balanced by nothing."
        )

    def spectrum(self, slope: np.ndarray) -> np.ndarray:
        """The eigenvalues of A diag(slope), and of diag(slope) A: exactly imaginary undamped."""
        root = np.sqrt(slope)
        similar = root[:, None] * self.matrix * root[None, :]
        if self.damped:
            return np.linalg.eigvals(similar).astype(complex)
        w = np.linalg.eigvalsh(1j * similar)
        return 0.5j * (w - w[::-1])


def _rest_of_antisymmetric(
    cell: AntisymmetricCell, system: _System, b: np.ndarray, tol: float
) -> Answer:
    s = _Monotone(cell.activation, cell.operator.dtype)
    z = np.zeros(cell.size)
    if not cell.activation.confining:
        if not s.increasing:
            return _undecided(f"{s.name} does not increase everywhere.")
        if not s.inside(z):
            return Answer(f"{s.name} has no zero.")
        z = s.inverse(z)
    missing = system.unreachable(z - b, tol)
    if missing is not None:
        return Answer(missing)
    return Answer(
        "W y - damping y + b must be where the activation vanishes.",
        system.solve(z - b),
        directions=system.kernel.T,
        spectrum=system.spectrum(s.slope(z)),
    )


def _rest_on_shell(cell: PoissonCell, system: _System, b: np.ndarray) -> Answer:
    assert cell.regulator is not None
    plain = not system.damped or (np.ndim(cell.damping) == 0 and cell.regulator.keep is None)
    if b.any() or not plain or _System(cell.operator).singular:
        return _undecided("A regulator is there, and a bias, uneven damping or a singular W too.")
    return Answer("With a regulator and a regular W, only s(x) = 0 rests.", np.zeros(cell.size))


def _rest_of_poisson(cell: PoissonCell, system: _System, b: np.ndarray, tol: float) -> Answer:
    missing = system.unreachable(-b, tol)
    if missing is not None:
        return Answer(missing)
    s = _Monotone(cell.activation, cell.operator.dtype)
    target = system.solve(-b)
    if not system.singular and cell.activation.confining and not b.any():
        x = np.zeros(cell.size)
    elif not s.monotone:
        return _undecided(f"{s.name} falls somewhere.")
    elif not system.singular:
        if s.beyond(target):
            return Answer(f"The s(x) it takes lies beyond the range of {s.name}.")
        if not s.inside(target):
            if s.increasing:
                return Answer(f"The s(x) it takes is a limit that {s.name} never reaches.")
            return _undecided(f"{s.name} is flat at the s(x) it takes.")
        x = s.inverse(target)
    else:
        x, found = _centred(s, system.range, target)
        if not found and np.max(np.abs(x)) > _FAR:
            return Answer(f"No s_p + N c lies within the range of {s.name}.")
        # N^T x = 0 may ask for an x where s is its limit to rounding; a c that moves all such
        # units off it shows that there is room.
        inward = s.inward(s.value(x))
        push = inward * (system.kernel @ (system.kernel.T @ inward))
        if not found or (inward.any() and not s.increasing):
            return _undecided(f"{s.name} is too flat to decide.")
        if np.any(push[inward != 0] <= np.sqrt(s.eps)):
            return Answer(f"s_p + N c reaches the range of {s.name} at its limits only.")
    slope = s.slope(x)
    directions = np.zeros((0, cell.size))
    note = "W - damping is regular: s(x) is unique."
    if system.singular:
        tangent = system.kernel / np.maximum(slope, float(jnp.finfo(s.dtype).tiny))[:, None]
        directions = np.linalg.qr(tangent / np.max(np.abs(tangent), axis=0))[0].T
        note = f"W - damping has a kernel: s(x) = s_p + N c, c of {len(directions)}."
    return Answer(note, x, directions=directions, spectrum=system.spectrum(slope))


class _Monotone:
    """An activation as a function of arrays of numpy, with its inverse."""

    def __init__(self, activation: AbstractActivation, dtype: np.dtype):
        self.name = type(activation).__name__
        self._activation, self.dtype = activation, dtype
        self.eps = float(jnp.finfo(dtype).eps)
        value = self.value(np.sinh(np.linspace(-_REACH, _REACH, 801)))
        rise = np.diff(value)
        self._low, self._high = value[0], value[-1]
        self.monotone = bool(np.all(rise >= -AT_LIMIT * self.eps * np.abs(value[1:])))
        self.increasing = self.monotone and bool(np.all(self.slope(np.linspace(-2, 2, 401)) > 0))

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(_value(self._activation, jnp.asarray(x, self.dtype)), np.float64)

    def slope(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(_slope(self._activation, jnp.asarray(x, self.dtype)), np.float64)

    def inverse(self, s: np.ndarray) -> np.ndarray:
        return np.asarray(_inverse(self._activation, jnp.asarray(s, self.dtype)), np.float64)

    def _slack(self, s: np.ndarray, limit: float) -> np.ndarray:
        return AT_LIMIT * self.eps * np.maximum(np.abs(s), abs(limit))

    def inside(self, s: np.ndarray) -> bool:
        """Whether all of s is clear of both limits."""
        return not self.inward(s).any()

    def inward(self, s: np.ndarray) -> np.ndarray:
        """1 where s is at or below the lower limit, -1 at or above the upper one, 0 between."""
        low = s - self._low <= self._slack(s, self._low)
        high = self._high - s <= self._slack(s, self._high)
        return low.astype(float) - high.astype(float)

    def beyond(self, s: np.ndarray) -> bool:
        """Whether some of s is clearly beyond a limit."""
        low = self._low - s > self._slack(s, self._low)
        return bool(np.any(low | (s - self._high > self._slack(s, self._high))))


@eqx.filter_jit
def _value(activation: AbstractActivation, x: Array) -> Array:
    return activation(x)


@eqx.filter_jit
def _slope(activation: AbstractActivation, x: Array) -> Array:
    return activation.derivative(x)


@eqx.filter_jit
def _inverse(activation: AbstractActivation, s: Array) -> Array:
    """x with s(x) = s: bisection in asinh x, then Newton steps as long as they help."""

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        below = activation(jnp.sinh(middle)) < s
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.full_like(s, -_REACH), jnp.full_like(s, _REACH)
    low, high = jax.lax.fori_loop(0, 64, halve, ends)

    def improve(_, x):
        miss, slope = activation(x) - s, activation.derivative(x)
        y = x - jnp.where(slope > 0, miss / jnp.where(slope > 0, slope, 1.0), 0.0)
        return jnp.where(jnp.abs(activation(y) - s) <= jnp.abs(miss), y, x)

    return jax.lax.fori_loop(0, 3, improve, jnp.sinh(0.5 * (low + high)))


def _centred(s: _Monotone, basis: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, bool]:
    """x = R y with R^T s(x) = R^T target, R the basis (n, r); and whether it was reached.

    This is the minimum of sum_i S(x_i) - target.x over y, by Newton's method with a line search
    on the slope along the step; without a minimum y grows without bound.
    """
    q = basis.T @ target
    rounding = s.eps * (1 + float(np.max(np.abs(target), initial=0.0)))
    y = np.zeros(basis.shape[1])
    best, best_miss, stalled = y, np.inf, 0

    def gradient(y: np.ndarray) -> np.ndarray:
        return basis.T @ s.value(basis @ y) - q

    for _ in range(500):
        g = gradient(y)
        miss = float(np.max(np.abs(g), initial=0.0))
        stalled = 0 if miss < 0.9 * best_miss else stalled + 1
        if miss < best_miss:
            best, best_miss = y, miss
        if miss == 0 or np.max(np.abs(basis @ y), initial=0.0) > _FAR**2:
            break
        if stalled > 3 and best_miss <= 64 * rounding:
            break
        hessian = basis.T @ (s.slope(basis @ y)[:, None] * basis)
        hessian[np.diag_indices(len(y))] += 1e-10 * min(1.0, miss)
        step = -np.linalg.solve(hessian, g)
        fall = -float(g @ step)
        for _ in range(60):
            if float(gradient(y + step) @ step) <= 0.25 * abs(fall):
                break
            step, fall = 0.5 * step, 0.5 * fall
        y = y + step
    found = best_miss <= 64 * rounding
    return basis @ (best if found else y), found
