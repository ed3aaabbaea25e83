import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from diffrax._term import WrapTerm  # not exported; diffeqsolve wraps every term in one
from jaxtyping import Array, Bool, Float

from .._cell import AbstractCell, AbstractInputs, AbstractVectorField
from .._skew import FormedSkew
from .._types import Args


class Step(eqx.Module):
    """What step `k` depends on besides the state; as `wanted`, which of it to differentiate by."""

    cell: Any
    inputs: Any
    t0: Any
    dt: Any
    k: Any = 0

    @property
    def t(self) -> Float[Array, ""]:
        return self.t0 + self.k * self.dt


class AbstractCellSolver(diffrax.AbstractSolver[None]):
    """A one-step method for our cells, and a diffrax solver.

    The work is in `advance`, which `simulate` calls with a constant step; `step` is what diffrax
    calls, and does no more than take the cell out of its term.
    """

    reversible: ClassVar[bool] = False
    """Whether a step of -dt undoes a step of dt, as `undo_batch` needs; and `prepare` does not
    depend on dt."""

    explicit: ClassVar[bool] = True
    """Whether a step is made of sums, products and functions of numbers, with nothing to solve."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    @abc.abstractmethod
    def check(self, cell: AbstractVectorField) -> None:
        """Raises ValueError, naming solvers that work, when the method cannot serve `cell`."""

    @abc.abstractmethod
    def advance(
        self,
        cell: AbstractVectorField,
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

    def advance_lane(
        self,
        cell: AbstractVectorField,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        """`advance` for a kernel, where every number is a register: `cell` is that of `form`, and
        `x` one that `start` has made or a step."""
        return self.advance(cell, t, dt, x, args)

    def pieces(self, cell: AbstractVectorField) -> Sequence[Any] | None:
        """The places in x of the pieces in which a kernel takes the units, to multiply blocks of
        W with them; None where it cannot."""
        return (slice(None),)

    def cut(self, cell: AbstractVectorField) -> Any:
        """What `advance_pieces` needs of `cell`."""
        if not isinstance(cell, AbstractCell):
            return cell
        return eqx.tree_at(lambda c: c.operator, cell, FormedSkew(cell.operator.as_matrix()))

    def advance_pieces(
        self, cut: Any, t: Float[Array, ""], dt: Float[Array, ""], x: tuple, args: Args
    ) -> tuple:
        """`advance` of a state in `pieces`, written in functions of numbers, sums, and products of
        vectors with matrices."""
        return (self.advance_lane(cut, t, dt, x[0], args),)

    def undo_pieces(self, step: Step, x: tuple, ct: tuple, wanted: Step) -> tuple:
        """`undo_batch` of one trajectory in `pieces`, where `step.cell` is of `cut`: the pieces
        before the step, their cotangents, and the step's gradient."""
        args = step.inputs(0)
        before = self.advance_pieces(step.cell, step.t + step.dt, -step.dt, x, args)
        free, fixed = eqx.partition(step, wanted)

        def forward(free, x):
            s = eqx.combine(free, fixed)
            return self.advance_pieces(s.cell, s.t, s.dt, x, s.inputs(0))

        gradient, ct = jax.vjp(forward, free, before)[1](ct)
        return before, ct, gradient

    def tile(self, cell: AbstractVectorField, itemsize: int, shared: bool) -> int | None:
        """How many trajectories, of numbers of `itemsize` bytes, are best solved at a time on a
        CPU, where it does other work too if `shared`; None for as many as there are."""
        return None

    def start(self, x: Float[Array, "n b"]) -> Float[Array, "n b"]:
        """The states that a solve from `x` really starts from."""
        return x

    def memo_steps(self, cell: Any, batch: int) -> int:
        """For how many steps `open_memo` should be asked at a time."""
        return 64

    def open_memo(self, prepared: Any, step: Step, x: Array, ct: Array, steps: int, wanted: Step):
        """Room for the gradients of `steps` steps, which will be undone from the state `x` of
        cotangent `ct`."""
        return jax.tree.map(jnp.zeros_like, eqx.filter(step, wanted))

    def undo_batch(
        self,
        prepared: Any,
        step: Step,
        x: Float[Array, "n b"],
        ct: Float[Array, "n b"],
        memo: Any,
        place: Array,
        wanted: Step,
    ) -> tuple[Float[Array, "n b"], Float[Array, "n b"], Any]:
        """Undoes the step that ended in `x`, and pulls the cotangent `ct` of `x` back through it.

        `prepared` is `prepare(step.cell, dt)`; `wanted` has a bool for every leaf of `step`; `memo`
        is of `open_memo`. Returns the state before the step, its cotangent,
        and `memo` with the gradient of the step noted at `place` = 0, 1, ..., for those leaves of
        `step` for which `wanted` is True.
        """
        before = self.advance_batch(prepared, step.t + step.dt, -step.dt, x, step.inputs)
        free, fixed = eqx.partition(step, wanted)

        def forward(free, x):
            s = eqx.combine(free, fixed)
            return self.advance_batch(s.cell, s.t, s.dt, x, s.inputs)

        _, vjp = jax.vjp(forward, free, before)
        gradient, ct = vjp(ct)
        return before, ct, jax.tree.map(jnp.add, memo, gradient)

    def close_memo(self, memo: Any) -> Step:
        """The gradient of all steps noted."""
        return memo

    def form(self, cell: AbstractVectorField) -> AbstractVectorField:
        """`cell` with W as the method takes it."""
        return materialise(cell)

    def prepare(self, cell: AbstractVectorField, dt: Float[Array, ""]) -> Any:
        """`form(cell)`, with everything that does not change from step to step worked out once.

        The result stands for `cell` in calls of `advance` with this very `dt`.
        """
        return self.form(cell)

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


def materialise(cell: Any) -> Any:
    """A cell with W in its fastest form, formed once."""
    if not isinstance(cell, AbstractCell):
        return cell
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


def beside(parameter: Array, x: Float[Array, "n *b"]) -> Array:
    """A scalar as it is, or (n,) to be broadcast against `x`."""
    return parameter if parameter.ndim == 0 else parameter.reshape(-1, *[1] * (x.ndim - 1))
