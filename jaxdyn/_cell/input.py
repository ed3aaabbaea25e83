"""The input u of a driven cell: a constant, a callable u(t), or a diffrax path."""

import abc

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Args, RealScalar, is_traced


def is_constant_input(u: Args) -> bool:
    """Whether `u` does not depend on time."""
    return not (isinstance(u, diffrax.AbstractPath) or callable(u))


def evaluate_input(u: Args, t: RealScalar) -> Array:
    """u at time `t`: `u` itself, `u(t)` or `u.evaluate(t)`."""
    try:
        if isinstance(u, diffrax.AbstractPath):
            return jnp.asarray(u.evaluate(t))
        return jnp.asarray(u(t) if callable(u) else u)
    except (TypeError, ValueError) as e:
        raise TypeError(
            f"`args` is the input u of the cell and must be an array (m,), a callable u(t) that "
            f"returns one, or a diffrax path; {u!r} is none: {e}"
        ) from e


class AbstractInputs(eqx.Module):
    """The inputs of a batch: called with the number of a trajectory, gives the input it sees."""

    @abc.abstractmethod
    def __call__(self, i: Array | int) -> Args:
        """The input of trajectory `i`."""

    def stacked(self) -> tuple[Args, bool]:
        """One input whose arrays are shared by all trajectories, or lead with the batch (True).

        **Raises:** ValueError where there is none.
        """
        raise ValueError(
            "`args`: a function that gives the inputs of all trajectories at once cannot be taken "
            "apart for `engine=jaxdyn.Kernel`; give a stack of eqx.Modules u(t), as "
            "eqx.filter_vmap makes them, or leave `engine` out."
        )


class SharedInput(AbstractInputs):
    """One input for all trajectories."""

    u: Args

    def __call__(self, i: Array | int) -> Args:
        return self.u

    def stacked(self) -> tuple[Args, bool]:
        return self.u, False


class _RowInputs(AbstractInputs):
    """An input that evaluates to (b, m), one row per trajectory."""

    u: Args

    def __call__(self, i: Array | int) -> Args:
        return jnp.asarray(self.u)[i] if is_constant_input(self.u) else _Row(self.u, i)

    def stacked(self) -> tuple[Args, bool]:
        return (jnp.asarray(self.u), True) if is_constant_input(self.u) else super().stacked()


class _Row(eqx.Module):
    u: Args
    index: Array | int

    def __call__(self, t: RealScalar) -> Array:
        return evaluate_input(self.u, t)[self.index]


class _StackedInputs(AbstractInputs):
    """A stack of inputs, as `eqx.filter_vmap` makes them: every array leads with the batch."""

    u: Args

    def __call__(self, i: Array | int) -> Args:
        dynamic, static = eqx.partition(self.u, eqx.is_array)
        return eqx.combine(jax.tree.map(lambda leaf: leaf[i], dynamic), static)

    def stacked(self) -> tuple[Args, bool]:
        return self.u, True


def per_trajectory(u: Args, t0: RealScalar, batch: int, m: int) -> AbstractInputs:
    """The inputs of a batch of `batch` trajectories with `m` input channels each.

    `u` is shared when it evaluates to (m,), and one per trajectory when it evaluates to (b, m) or
    is a stack of inputs.

    **Raises:** ValueError when it is neither.
    """

    def shape_of(value: Args) -> tuple[tuple[int, ...] | None, Exception | None]:
        try:
            return eqx.filter_eval_shape(evaluate_input, value, t0).shape, None
        except Exception as e:  # a stack of paths fails in ways of its own when not taken apart
            return None, e

    shape, error = shape_of(u)
    if shape == (m,):
        return SharedInput(u)
    if shape == (batch, m):
        return _RowInputs(u)
    leaves = jax.tree.leaves(eqx.filter(u, eqx.is_array))
    if leaves and all(leaf.ndim > 0 and leaf.shape[0] == batch for leaf in leaves):
        stack = _StackedInputs(u)
        if shape_of(stack(jnp.asarray(0)))[0] == (m,):
            return stack
    found = f"evaluates to {shape}" if error is None else f"cannot be evaluated: {error}"
    raise ValueError(
        f"`args` is the input u: it must evaluate to ({m},), shared by all trajectories, or to "
        f"({batch}, {m}), one row per trajectory (input_matrix has {m} columns, x0 holds {batch} "
        f"trajectories); got something that {found}."
    ) from error


def check_constant(value: object, name: str) -> None:
    """Refuses whatever is not real and finite where a number or an array of them is meant."""
    if is_traced(value):
        return
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as e:
        raise TypeError(
            f"`{name}` must be a real number or an array of them, got {value!r}."
        ) from e
    if array.dtype.kind not in "iuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        given = repr(value) if array.dtype.kind in "OUS" else f"dtype {array.dtype}"
        raise TypeError(f"`{name}` must be a real number or an array of them, got {given}.")
    if not np.all(np.isfinite(np.asarray(array, dtype=np.float64))):
        raise ValueError(f"`{name}` must be finite; it holds NaN or infinity.")
