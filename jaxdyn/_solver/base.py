import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from diffrax._term import WrapTerm  # not exported; diffeqsolve wraps every term in one
from jaxtyping import Array, Bool, Float

from .._cell import AbstractCell, AbstractInputs
from .._types import Args


class AbstractCellSolver(diffrax.AbstractSolver[None]):
    """A one-step method for our cells, and a diffrax solver.

    The work is in `advance`, which `simulate` calls with a constant step; `step` is what diffrax
    calls, and does no more than take the cell out of its term.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    @abc.abstractmethod
    def check(self, cell: AbstractCell) -> None:
        """Raises ValueError, naming solvers that work, when the method cannot serve `cell`."""

    @abc.abstractmethod
    def advance(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        """The state at t + dt, from the state `x` at `t`."""

    def advance_batch(
        self,
        cell: Any,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, "n b"],
        inputs: AbstractInputs,
    ) -> Float[Array, "n b"]:
        """`advance` of a batch in the minor axis; trajectory i sees the input `inputs(i)`."""

        def one(x, i):
            return self.advance(cell, t, dt, x, inputs(i))

        return jax.vmap(one, in_axes=(1, 0), out_axes=1)(x, jnp.arange(x.shape[1]))

    def prepare(self, cell: AbstractCell, dt: Float[Array, ""]) -> AbstractCell:
        """`cell` with everything that does not change from step to step worked out once.

        The result stands for `cell` in calls of `advance` with this very `dt`.
        """
        return materialise(cell)

    def converged(self, x1: Float[Array, " n"]) -> Bool[Array, ""] | bool:
        """Whether the step that made `x1` succeeded; explicit methods always do."""
        return True

    def init(self, terms, t0, t1, y0, args) -> None:
        cell, _ = unwrap(terms, self)
        if jnp.shape(y0) != (cell.size,):
            raise ValueError(
                f"`y0` must have shape ({cell.size},), one number per unit of the cell; got "
                f"{jnp.shape(y0)}. Batches go through jaxdyn.simulate or jax.vmap."
            )
        self.check(cell)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        cell, direction = unwrap(terms, self)
        t, dt = own_time(t0, t1, direction, y0.dtype)
        y1 = self.advance(cell, t, dt, y0, args)
        # Only evaluated when something is interpolated: otherwise nothing reads it.
        dense_info = dict(y0=y0, y1=y1, k0=dt * cell(t, y0, args), k1=dt * cell(t + dt, y1, args))
        failure: Any = diffrax.RESULTS.nonlinear_divergence
        result = diffrax.RESULTS.where(
            jnp.asarray(self.converged(y1)), diffrax.RESULTS.successful, failure
        )
        return y1, None, dense_info, None, result

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def materialise(cell: AbstractCell) -> AbstractCell:
    """`cell` with W in its fastest form, formed once."""
    return eqx.tree_at(lambda c: c.operator, cell, lx.materialise(cell.operator))


def unwrap(terms, solver: diffrax.AbstractSolver) -> tuple[AbstractCell, Any]:
    """The cell inside diffrax's WrapTerm(ODETerm(cell)), and the direction of time."""
    direction = 1
    term = terms
    if isinstance(term, WrapTerm):
        term, direction = term.term, term.direction
    if isinstance(term, diffrax.ODETerm) and isinstance(term.vector_field, AbstractCell):
        return term.vector_field, direction
    name = type(solver).__name__
    raise ValueError(
        f"{name} needs `terms=diffrax.ODETerm(cell)` with a PoissonCell or an AntisymmetricCell, "
        f"got {type(term).__name__}. For another vector field, or for "
        "adjoint=diffrax.BacksolveAdjoint(...), use jaxdyn.RK4() or a diffrax solver such as "
        "diffrax.Tsit5()."
    )


def own_time(t0, t1, direction, dtype) -> tuple[Array, Array]:
    """Start and signed length of a step, in the cell's own time and the state's dtype."""
    t0 = jnp.asarray(t0, dtype) * jnp.asarray(direction, dtype)
    t1 = jnp.asarray(t1, dtype) * jnp.asarray(direction, dtype)
    return t0, t1 - t0
