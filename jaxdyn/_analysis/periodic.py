"""Periodic orbits by shooting, and their Floquet multipliers."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from .._cell import AbstractCell, PoissonCell, is_constant_input
from .._solver import Taylor
from .._types import is_traced
from .flow import Flow, checked_flow, positive, whole

# |W|_2 h at which Taylor's series of order 16 is exact to rounding; steps in a period of others.
TAYLOR_STEP, STEPS = 0.25, 500
# In float32 and in float64.
TOLERANCES = (1e-4, 1e-9)
# |l1 l2 - 1| of multipliers that are a pair, and a right angle between f and all gradients.
PAIRED, INDEPENDENT = 1e-3, 1e-6
# A period below this part of the guess is the collapse onto a point, where every equation holds.
SHORTEST = 0.2
REASONS = (
    "converged",
    "the residual is above `tol`: give a better guess, or more steps",
    "the period fell towards 0: give a guess nearer to the orbit",
    "the guess led to a fixed point, which is no orbit: give a guess nearer to the orbit",
    "the trajectory diverged: give a guess nearer to the orbit, or more steps",
)


class PeriodicOrbit(eqx.Module):
    """A closed orbit x(t + T) = x(t).

    `x` (n,), a state on it; `period` T > 0; `monodromy` (n, n), the derivative of the state after a
    period by `x`; `residual`, max |x(T) - x|; `error`, by how much x(T) changes with twice as many
    steps; `converged`, and `status`, which `reason` puts in words. `normals` (q, n) are the
    gradients at `x` of what the flow conserves, left eigenvectors of the monodromy.
    """

    flow: Flow
    x: Float[Array, " n"]
    period: Float[Array, ""]
    monodromy: Float[Array, "n n"]
    normals: Float[Array, "q n"]
    residual: Float[Array, ""]
    error: Float[Array, ""]
    status: Array
    steps: int = eqx.field(static=True)

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether this is an orbit."""
        return self.status == 0

    @property
    def reason(self) -> str:
        """Why it is none. Needs a concrete orbit."""
        return REASONS[int(self.status)]

    def states(self) -> tuple[Float[Array, " t"], Float[Array, "t n"]]:
        """Times and states after every step of one period, the first again at the end."""
        fractions = jnp.linspace(0.0, 1.0, self.steps + 1, dtype=self.x.dtype)
        return self.period * fractions, _states(self.flow, self.x, self.period, self.steps)


def periodic_orbit(
    field: Any,
    x_guess: Any,
    period_guess: Any,
    *,
    invariants: Any = None,
    energy: Any = None,
    solver: Any = None,
    steps: Any = None,
    args: Any = None,
    tol: Any = None,
    max_steps: Any = 50,
    throw: bool = True,
) -> PeriodicOrbit:
    r"""The periodic orbit near a guess, by shooting: $\phi_T(x) = x$ for x and T.

    Levenberg-Marquardt on the return $\phi_T(x) - x$, the phase $f(x_g) \cdot (x - x_g) = 0$ and,
    where orbits come in families, what picks one: conserved quantities keep the values that they
    have at the guess, or `energy`. `x` and `period` have gradients by all that the field is made
    of, such as the weights of a cell, by the implicit function theorem.

    **Arguments:**

    - `field`: an autonomous cell, or any f(t, x, args) that does not depend on t.
    - `x_guess`, `period_guess`: (n,) and > 0, near the orbit.
    - `invariants`: for a field that conserves something, a function of x (n,) with values () or
      (q,). Cells know theirs: energy and Casimirs where nothing drives, damps or regulates them.
    - `energy`: that of the orbit that is wanted, for such a cell; default that of the guess.
    - `solver`: as for [`jaxdyn.lyapunov_spectrum`][], but Taylor of order 16 for cells that it
      serves.
    - `steps`: in one period; default 500, and for Taylor as many as make it exact to rounding.
    - `args`: handed to the field; constant.
    - `tol`: the largest residual of an orbit, in units of the state; default 1e-9, and 1e-4 in
      float32.
    - `max_steps`: of Levenberg-Marquardt.
    - `throw`: whether a guess that leads to no orbit raises; else see `.converged` and `.reason`.

    **Returns:** a [`jaxdyn.PeriodicOrbit`][].

    **Raises:** TypeError or ValueError that names the argument; RuntimeError that says what became
    of a guess that leads to no orbit.
    """
    flow, x = checked_flow(field, x_guess, solver, args, exact=Taylor(16), name="x_guess")
    if x.ndim != 1:
        raise ValueError(f"`x_guess` must have shape (n,), got {x.shape}; use jax.vmap for more.")
    if not is_constant_input(args) and isinstance(field, AbstractCell):
        raise ValueError("`args` must be constant: an orbit closes in an autonomous field only.")
    if invariants is not None and not callable(invariants):
        raise TypeError(f"`invariants` must be a function of x or None, got {invariants!r}.")
    if not is_traced(period_guess):
        positive("period_guess", period_guess)
    period = jnp.asarray(period_guess, x.dtype)
    max_steps = whole("max_steps", max_steps, 1)
    tol = TOLERANCES[x.dtype == jnp.float64] if tol is None else positive("tol", tol)
    if steps is None:
        steps = _steps(flow, period)
    steps = whole("steps", steps, 1)
    wanted: Any = None
    if energy is not None:
        if not conserves(flow.field) or invariants is not None:
            raise ValueError(
                "`energy` picks an orbit of a cell that conserves it, neither driven, damped nor "
                "regulated; for other fields give `invariants`, or the guess that energy."
            )
        wanted = jnp.asarray(energy, x.dtype)
        if not is_traced(wanted):
            positive("energy", energy)
    conserved = _conserved(flow.field, invariants, x)
    rate = flow.rate(jnp.zeros((), x.dtype), x)
    if not is_traced(rate) and not bool(jnp.any(rate != 0)):
        raise ValueError("`x_guess` is a fixed point of the field: no orbit goes through it.")
    orbit = _solved(flow, x, period, conserved, wanted, steps, tol, max_steps)
    if throw and not is_traced(orbit.status) and not bool(orbit.converged):
        raise RuntimeError(
            f"no periodic orbit: {orbit.reason} (residual {float(orbit.residual):.2g}, period "
            f"{float(orbit.period):.4g})."
        )
    return orbit


def _steps(flow: Flow, period: Float[Array, ""]) -> int:
    if not isinstance(flow.solver, Taylor):
        return STEPS
    if is_traced((flow.field, period)):
        raise ValueError("`steps` must be given under jit, grad or vmap: |W|_2 has no value there.")
    norm = float(np.max(np.asarray(flow.field.operator.frequencies()), initial=0.0))
    return max(16, math.ceil(1.5 * float(period) * norm / TAYLOR_STEP))


def conserves(field: Any) -> bool:
    if not isinstance(field, AbstractCell) or field.damping is not None:
        return False
    if isinstance(field, PoissonCell):
        return field.regulator is None and field.bias is None and field.input_matrix is None
    return True


class _Conserved(eqx.Module):
    """What the flow conserves, (q,)."""

    invariants: Callable | None
    rows: Float[Array, "d n"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " q"]:
        linear = self.rows @ x
        if self.invariants is None:
            return linear
        return jnp.concatenate([jnp.atleast_1d(jnp.asarray(self.invariants(x))), linear])


def _conserved(field: Any, invariants: Callable | None, x: Float[Array, " n"]) -> _Conserved:
    if invariants is not None or not isinstance(field, AbstractCell):
        return _Conserved(invariants, jnp.zeros((0, x.size), x.dtype))
    return _Conserved(field.energy if conserves(field) else None, linear_invariants(field, x))


def linear_invariants(cell: AbstractCell, x: Float[Array, " n"]) -> Float[Array, "d n"]:
    """The rows c of the linear invariants c.x: ker W where a PoissonCell conserves its energy, and
    what a regulator keeps of that where one is all that is added."""
    none = jnp.zeros((0, x.size), x.dtype)
    if not isinstance(cell, PoissonCell):
        return none
    if conserves(cell):
        return _casimirs(cell, x)
    shell = cell.regulator
    others = cell.damping, cell.bias, cell.input_matrix
    if shell is None or shell.keep is None or any(part is not None for part in others):
        return none
    rows = shell.keep.astype(x.dtype)
    if is_traced(cell):
        return rows
    moved = np.abs(np.asarray(jax.vmap(cell.operator.mv)(rows))).max(axis=1, initial=0.0)
    norm = float(np.max(np.asarray(cell.operator.frequencies()), initial=0.0))
    return rows[moved <= 1e3 * np.finfo(x.dtype).eps * norm]


def _casimirs(cell: PoissonCell, x: Float[Array, " n"]) -> Float[Array, "d n"]:
    if not is_traced(cell):
        return jnp.asarray(cell.operator.kernel()).astype(x.dtype)
    # Generic W has a kernel of one dimension where n is odd, and none otherwise.
    if cell.size % 2:
        raise ValueError(
            "`field` of an odd number of units has a Casimir, whose direction has no value under "
            "jit, grad or vmap; give `invariants`, a function of x for the energy and c.x."
        )
    return jnp.zeros((0, x.size), x.dtype)


def march(flow: Flow, x: Array, period: Array, steps: int | Array) -> Array:
    """The state after a period."""
    dt, t = period / steps, jnp.zeros((), x.dtype)
    return jax.lax.fori_loop(0, steps, lambda _, x: flow.advance(t, dt, x), x)


@eqx.filter_jit
def _states(flow: Flow, x: Array, period: Array, steps: int) -> Array:
    dt, t = period / steps, jnp.zeros((), x.dtype)

    def step(x, _):
        x = flow.advance(t, dt, x)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(step, x, None, length=steps)[1]])


def with_tangents(
    flow_of: Callable[[Array], Flow], x: Array, p: Array, period: Array, steps: int | Array
) -> tuple[Float[Array, " n"], Float[Array, "n m"]]:
    """The state after a period, and its derivative by the first one and by the parameters p (q,)
    of the flow, m = n + q."""
    dt, t = period / steps, jnp.zeros((), x.dtype)
    moved_p = jnp.concatenate([jnp.zeros((p.size, x.size)), jnp.eye(p.size)], axis=1)
    moved_p = moved_p.astype(x.dtype)

    def step(_, carry):
        x, columns = carry
        moved, push = jax.linearize(lambda x, p: flow_of(p).advance(t, dt, x), x, p)
        return moved, jax.vmap(push, in_axes=1, out_axes=1)(columns, moved_p)

    return jax.lax.fori_loop(0, steps, step, (x, jnp.eye(x.size, x.size + p.size, dtype=x.dtype)))


@eqx.filter_jit
def _solved(flow, guess, period_guess, conserved, wanted, steps, tol, max_steps) -> PeriodicOrbit:
    zero = jnp.zeros((), guess.dtype)
    dynamic, static = eqx.partition((flow, guess, period_guess), eqx.is_array)
    fixed, guess, period_guess = eqx.combine(jax.lax.stop_gradient(dynamic), static)
    direction = fixed.rate(zero, guess)
    direction = direction / jnp.linalg.norm(direction)

    def levels(x):
        """How far x is from the wanted values of what is conserved, in units of the state."""
        at, slopes = conserved(guess), jax.jacfwd(conserved)(guess)
        if wanted is not None:
            at = at.at[0].set(wanted)
        sizes = jax.lax.stop_gradient(jnp.linalg.norm(slopes, axis=1))
        return (conserved(x) - at) / jnp.where(sizes > 0, sizes, 1.0)

    def equations(z, at):
        x = z[:-1]
        return jnp.concatenate([at - x, (direction @ (x - guess))[None], levels(x)])

    def shoot(z):
        """The equations, their derivative by z, and the monodromy."""
        x, period = z[:-1], period_guess * jnp.exp(z[-1])
        at, monodromy = with_tangents(lambda _: fixed, x, jnp.zeros(0, x.dtype), period, steps)
        r = equations(z, at)
        turn = monodromy - jnp.eye(x.size, dtype=z.dtype)
        columns = jnp.concatenate([turn, direction[None], jax.jacfwd(levels)(x)])
        last = jnp.zeros_like(r).at[: x.size].set(period * fixed.rate(zero, at))
        return r, jnp.concatenate([columns, last[:, None]], axis=1), monodromy

    start = jnp.concatenate([guess, zero[None]])
    z, _, jacobian, monodromy, _ = least_squares(shoot, start, max_steps)
    z, jacobian, monodromy = jax.lax.stop_gradient((z, jacobian, monodromy))

    # One more Newton step, whose derivative by all else is that of the implicit function theorem.
    period = period_guess * jnp.exp(z[-1])
    at = march(flow, z[:-1], period, steps)
    residual = jnp.max(jnp.abs(at - z[:-1]))
    error = jnp.max(jnp.abs(march(fixed, z[:-1], period, 2 * steps) - at))
    # Without directions in which there are other orbits, where `invariants` are missing.
    rounding = float(jnp.finfo(z.dtype).eps) ** 0.5
    z = z - jnp.linalg.pinv(jacobian, rtol=rounding) @ equations(z, at)
    x, period = z[:-1], period_guess * jnp.exp(z[-1])
    rate = jnp.linalg.norm(fixed.rate(zero, x))
    status = jnp.where(residual <= tol, 0, 1)
    status = jnp.where(period < SHORTEST * period_guess, 2, status)
    still = rate * period <= 10 * tol
    status = jnp.where(still, 3, status)
    status = jnp.where(jnp.isfinite(residual), status, 4)
    return PeriodicOrbit(
        flow, x, period, monodromy, jax.jacfwd(conserved)(x), residual, error, status, steps
    )


def least_squares(
    shoot: Callable, start: Array, max_steps: int, damping: float = 1e-3
) -> tuple[Array, ...]:
    """Levenberg-Marquardt: the best z, what `shoot` says there, and how often it shot.

    Of our own because `shoot` is all there is to compile, and a general method has it compiled
    several times over: for residuals, for their derivative, and where it starts.
    """
    shape = jax.eval_shape(shoot, start)

    def over(state):
        trial, _, _, damping, done, *_ = state
        return (done < max_steps) & (damping < 1e8) & jnp.all(jnp.isfinite(trial))

    def improve(state):
        trial, z, cost, damping, done, r, jacobian, monodromy = state
        new = shoot(trial)
        new_cost = jnp.sum(new[0] ** 2)
        better = new_cost < cost
        keep = lambda a, b: jnp.where(better, a, b)  # noqa: E731
        z, (r, jacobian, monodromy) = (
            keep(trial, z),
            jax.tree.map(keep, new, (r, jacobian, monodromy)),
        )
        # Newton's steps square the error; one that does not, near the end, moves rounding only.
        near = new_cost < jnp.finfo(z.dtype).eps ** 1.2
        settled = (damping <= 1e-4) & near & (new_cost > 1e-2 * cost)
        settled |= ~better & (damping <= 1e-9)
        damping = jnp.where(settled, 1e9, jnp.where(better, damping / 100, damping * 10))
        columns = jnp.concatenate([jacobian, jnp.sqrt(damping) * jnp.eye(z.size, dtype=z.dtype)])
        wanted = jnp.concatenate([-r, jnp.zeros_like(z)])
        step = jnp.linalg.lstsq(columns, wanted)[0]
        return z + step, z, keep(new_cost, cost), damping, done + 1, r, jacobian, monodromy

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    infinite = jnp.full((), jnp.inf, start.dtype)
    state = (start, start, infinite, jnp.full((), damping, start.dtype), jnp.asarray(0), *zeros)
    _, z, _, _, done, r, jacobian, monodromy = jax.lax.while_loop(over, improve, state)
    return z, r, jacobian, monodromy, done


class FloquetMultipliers(eqx.Module):
    r"""What becomes of small deviations from an orbit in one period.

    `multipliers` (p,), the eigenvalues of the monodromy without the trivial ones, by falling size;
    `stability_indices` (p // 2,), $\lambda + 1 / \lambda$ of each pair $(\lambda, 1 / \lambda)$,
    real between -2 and 2 where the orbit is stable, for flows that conserve something (else empty;
    NaN where multipliers come in no such pairs); `trivial`, how many
    eigenvalues are 1 for reasons of structure: one for the direction of the flow, and for each
    conserved quantity one more that belongs to it.
    """

    multipliers: Complex[Array, " p"]
    stability_indices: Complex[Array, " h"]
    trivial: int = eqx.field(static=True)

    @property
    def stable(self) -> Bool[Array, ""]:
        """Whether no multiplier is outside the unit circle, by more than 1e-6."""
        return jnp.all(jnp.abs(self.multipliers) <= 1 + 1e-6)


def floquet(orbit: Any) -> FloquetMultipliers:
    r"""The Floquet multipliers of a periodic orbit.

    The monodromy M leaves f fixed, $M f = f$, and the gradient g of a conserved quantity, $g^T M =
    g^T$. Those eigenvalues 1 come as Jordan pairs, which rounding splits by $\sqrt\epsilon$; so
    they are not searched for but taken out: what is left is M on the states orthogonal to all g,
    modulo f. (An AntisymmetricCell with singular W keeps a multiplier 1 for every direction of ker
    W, along which its orbits can be shifted.)

    **Raises:** TypeError when `orbit` is no periodic orbit; ValueError when it did not converge,
    or its `invariants` depend on each other at `x`.
    """
    if not isinstance(orbit, PeriodicOrbit):
        raise TypeError(f"`orbit` must be what periodic_orbit returned, got {orbit!r}.")
    if not is_traced(orbit.status) and not bool(orbit.converged):
        raise ValueError(f"`orbit` is none: {orbit.reason}.")
    rate = orbit.flow.rate(jnp.zeros((), orbit.x.dtype), orbit.x)
    trivial = jnp.concatenate([rate[None], orbit.normals])
    taken = trivial.shape[0]
    if not is_traced(trivial):
        rows = trivial / jnp.maximum(jnp.linalg.norm(trivial, axis=1), 1e-300)[:, None]
        if taken > orbit.x.size or float(jnp.linalg.svd(rows)[1][-1]) < INDEPENDENT:
            raise ValueError(
                "`orbit`: the gradients of its `invariants` depend on each other, or vanish; give "
                "periodic_orbit only invariants that are independent on the orbit."
            )
    multipliers = nontrivial(rate, orbit.normals, orbit.monodromy)
    if orbit.normals.shape[0] > 0 and multipliers.size % 2 == 0:
        indices = stability_indices(multipliers)
    else:
        indices = jnp.zeros(0, multipliers.dtype)
    return FloquetMultipliers(multipliers, indices, trivial=taken)


def nontrivial(
    rate: Float[Array, " n"], normals: Float[Array, "q n"], monodromy: Float[Array, "n n"]
) -> Complex[Array, " p"]:
    """The eigenvalues of the monodromy without those for f and for the gradients, by falling
    size."""
    taken = jnp.concatenate([rate[None], normals])
    # The last rows of an orthogonal matrix whose first ones span the trivial directions.
    q, _ = jnp.linalg.qr(taken.T, mode="complete")
    rest = q[:, taken.shape[0] :]
    multipliers = jnp.linalg.eigvals(rest.T @ monodromy @ rest)
    return multipliers[jnp.argsort(-jnp.abs(multipliers))]


def stability_indices(multipliers: Complex[Array, " p"]) -> Complex[Array, " h"]:
    """lambda + 1 / lambda of pairs (lambda, 1 / lambda), p even, sorted by size before; NaN where
    they are no pairs."""
    p = multipliers.size
    missed = jnp.abs(multipliers[:, None] * multipliers[None, :] - 1)
    missed = jnp.where(jnp.eye(p, dtype=bool), jnp.inf, missed)
    each = multipliers + 1 / multipliers
    out, free = [], jnp.ones(p, bool)
    for _ in range(p // 2):
        # The largest that is left, whose reciprocal is the best known.
        first = jnp.argmax(free)
        among = jnp.where(free, missed[first], jnp.inf)
        second = jnp.argmin(among)
        pair = (each[first] + each[second]) / 2
        out.append(jnp.where(among[second] < PAIRED, pair, jnp.nan))
        free = free.at[first].set(False).at[second].set(False)
    return jnp.stack(out) if out else jnp.zeros(0, multipliers.dtype)
