"""x' = f(t, x, args) by constant steps, for our cells or any field: what every analysis runs on."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell, SharedInput, cast
from .._simulate import check_number, check_x0, default_solver
from .._solver import RK4, AbstractCellSolver
from .._types import is_traced


class Flow(eqx.Module):
    """A vector field and the solver whose steps follow it.

    `field` is a cell, or any f(t, x, args) with x (n,). `solver` is one of ours for cells; for
    other fields `jaxdyn.RK4()` or an explicit Runge-Kutta solver of diffrax, taken at its own order
    with constant steps.
    """

    field: Any
    solver: Any
    args: Any

    @property
    def _by_tableau(self) -> bool:
        """RK4 serves both kinds of field; what it has prepared of a cell is one."""
        if isinstance(self.solver, RK4):
            return not isinstance(self.field, AbstractCell)
        return not isinstance(self.solver, AbstractCellSolver)

    def rate(self, t: Float[Array, ""], x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.field(t, x, self.args)

    def advance(
        self, t: Float[Array, ""], dt: Float[Array, ""], x: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """The state at t + dt."""
        if not self._by_tableau:
            return self.solver.advance(self.field, t, dt, x, self.args)
        return _runge_kutta(_tableau(self.solver), self.rate, t, dt, x)

    def advance_batch(
        self, t: Float[Array, ""], dt: Float[Array, ""], x: Float[Array, "n b"]
    ) -> Float[Array, "n b"]:
        """The same of a batch in the minor axis, with what `prepared` has worked out."""
        if not self._by_tableau:
            return self.solver.advance_batch(self.field, t, dt, x, SharedInput(self.args))
        return jax.vmap(lambda x: self.advance(t, dt, x), in_axes=1, out_axes=1)(x)

    def prepared(self, dt: Float[Array, ""]) -> "Flow":
        """With everything that does not change from step to step worked out once, for this dt."""
        if not isinstance(self.field, AbstractCell):
            return self
        return Flow(self.solver.prepare(self.field, dt), self.solver, self.args)


class _Tableau(NamedTuple):
    """What of a Butcher tableau constant steps need."""

    b_sol: Any
    a_lower: Any
    c: Any


# Runge and Kutta's own.
_CLASSIC = _Tableau(
    (1 / 6, 1 / 3, 1 / 3, 1 / 6), ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (0.5, 0.5, 1)
)


def _tableau(solver: Any) -> _Tableau:
    if isinstance(solver, RK4):
        return _CLASSIC
    return _Tableau(solver.tableau.b_sol, solver.tableau.a_lower, solver.tableau.c)


def _runge_kutta(tableau: _Tableau, rate: Callable, t, dt, x):
    """One step of an explicit method; a last stage that the solution does not use is left out."""
    weights = np.asarray(tableau.b_sol)
    stages = int(np.max(np.nonzero(weights)[0])) + 1
    slopes = [rate(t, x)]
    for row, fraction in zip(tableau.a_lower[: stages - 1], tableau.c, strict=False):
        moved = x
        for a, k in zip(row, slopes, strict=True):
            if a != 0:
                moved = moved + (float(a) * dt) * k
        slopes.append(rate(t + float(fraction) * dt, moved))
    for b, k in zip(weights, slopes, strict=False):
        if b != 0:
            x = x + (float(b) * dt) * k
    return x


def checked_flow(
    field: Any,
    x0: Any,
    solver: Any,
    args: Any,
    *,
    exact: AbstractCellSolver | None = None,
    name: str = "x0",
) -> tuple[Flow, Float[Array, "*b n"]]:
    """The flow and its initial states (n,) or (b, n), which errors call `name`.

    Without a `solver`, a cell gets `exact` where that serves it, or else what `simulate` takes; any
    other field gets Dopri8.

    **Raises:** TypeError or ValueError that names the argument.
    """
    if isinstance(field, AbstractCell):
        try:
            x0 = check_x0(field, x0)
        except (TypeError, ValueError) as e:
            raise type(e)(str(e).replace("`x0`", f"`{name}`")) from None
        field = cast(field, x0.dtype)
        if field.input_matrix is not None and args is None:
            raise ValueError(
                "`args` is the input u of the driven cell `field`, and is missing; give it, or "
                "build the cell without input_matrix."
            )
        solver = _solver_of_cell(field, exact) if solver is None else solver
        if not isinstance(solver, AbstractCellSolver):
            raise TypeError(
                f"`solver` must be one of jaxdyn's, such as jaxdyn.Strang(), got {solver!r}."
            )
        solver.check(field)
        return Flow(field, solver, args), x0
    if not callable(field) or isinstance(field, type):
        raise TypeError(f"`field` must be a cell or a function f(t, x, args), got {field!r}.")
    x0 = _states(name, x0)
    solver = diffrax.Dopri8() if solver is None else solver
    explicit = isinstance(solver, diffrax.AbstractERK)
    if not (explicit or isinstance(solver, RK4)):
        raise TypeError(
            "`solver` must be jaxdyn.RK4() or an explicit Runge-Kutta solver of diffrax, such as "
            f"diffrax.Dopri8(), for a `field` that is no cell; got {solver!r}."
        )
    one = jax.ShapeDtypeStruct(x0.shape[-1:], x0.dtype)
    out = eqx.filter_eval_shape(field, jnp.zeros((), x0.dtype), one, args)
    if getattr(out, "shape", None) != one.shape:
        raise ValueError(
            f"`field` must return x' of shape {one.shape} for a state of that shape, got {out}."
        )
    return Flow(field, solver, args), x0


def _solver_of_cell(cell: AbstractCell, exact: AbstractCellSolver | None) -> AbstractCellSolver:
    if exact is not None:
        try:
            exact.check(cell)
        except ValueError:
            return default_solver(cell)
        return exact
    return default_solver(cell)


def _states(name: str, x0: Any) -> Float[Array, "*b n"]:
    try:
        x0 = jnp.asarray(x0)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be an array of real numbers, got {x0!r}.") from e
    if x0.dtype == bool or not jnp.issubdtype(x0.dtype, jnp.number):
        raise TypeError(f"`{name}` must hold real numbers, got dtype {x0.dtype}.")
    if jnp.issubdtype(x0.dtype, jnp.complexfloating):
        raise TypeError(
            f"`{name}` must be real; give real and imaginary parts as states of their own."
        )
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        x0 = x0.astype(float)
    if x0.ndim not in (1, 2) or x0.size == 0:
        raise ValueError(f"`{name}` must have shape (n,) or (b, n), got {x0.shape}.")
    if not is_traced(x0) and not bool(jnp.all(jnp.isfinite(x0))):
        raise ValueError(f"`{name}` holds NaN or infinity; every initial state must be finite.")
    return x0


def positive(name: str, value: Any) -> float:
    """A concrete number > 0.

    **Raises:** TypeError or ValueError that names it.
    """
    if is_traced(value):
        raise TypeError(f"`{name}` must be known before tracing: it says how many steps there are.")
    check_number(name, value, "a finite number > 0")
    if not float(value) > 0:
        raise ValueError(f"`{name}` must be a finite number > 0, got {value!r}.")
    return float(value)


def whole(name: str, value: Any, least: int) -> int:
    """A concrete integer of at least `least`.

    **Raises:** TypeError or ValueError that names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    return int(value)


def step_count(t1: float, dt: float) -> int:
    """Steps of at most dt that make t1."""
    return max(1, math.ceil(t1 / dt - 1e-9))
