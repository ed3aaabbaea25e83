import abc
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._activation import AbstractActivation
from .._skew import AbstractSkewOperator
from .._types import Args, RealScalar
from .input import check_constant, evaluate_input

Field = TypeVar("Field", bound="AbstractVectorField")


class AbstractVectorField(eqx.Module):
    """x' = f(t, x, args) of n units."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of units n."""

    @abc.abstractmethod
    def __call__(self, t: RealScalar, x: Float[Array, " n"], args: Args) -> Float[Array, " n"]:
        """The vector field x' at time `t`, state `x` and input `args`."""


class AbstractCell(AbstractVectorField):
    """A continuous-time recurrent network, called as diffrax calls a vector field: (t, x, args).

    A cell holds a skew operator W, an activation s with potential S, and optionally a bias b, an
    input matrix U and a damping. `args` is the input u: a constant (m,), a callable u(t), or a
    diffrax path.
    """

    operator: eqx.AbstractVar[AbstractSkewOperator]
    activation: eqx.AbstractVar[AbstractActivation]
    bias: eqx.AbstractVar[Float[Array, " n"] | None]
    input_matrix: eqx.AbstractVar[Float[Array, "n m"] | None]
    damping: eqx.AbstractVar[Float[Array, ""] | Float[Array, " n"] | None]

    @property
    def size(self) -> int:
        """The number of units n."""
        return self.operator.size

    @abc.abstractmethod
    def energy(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        """The energy of state `x`, conserved when nothing drives or damps the cell."""

    @abc.abstractmethod
    def casimirs(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """The linear invariants c.x of state `x`, for each c of an orthonormal basis of ker W."""

    @abc.abstractmethod
    def energy_rate(self, t: RealScalar, x: Float[Array, " n"], args: Args) -> Float[Array, ""]:
        """dH/dt along the flow: what drives and damps the cell, exactly 0 when nothing does."""

    def drive(self, t: RealScalar, args: Args) -> Float[Array, " n"] | None:
        """U u(t) + b, or None for an autonomous cell without a bias.

        **Raises:** ValueError when `args` is given and the cell has no `input_matrix`, or when u
        has the wrong shape; TypeError when u is not an array of real numbers.
        """
        if args is None:
            if self.input_matrix is not None:
                raise ValueError(
                    "`args` is None but the cell has an input_matrix with "
                    f"{self.input_matrix.shape[1]} columns; pass the input u as args=."
                )
            return self.bias
        if self.input_matrix is None:
            raise ValueError(
                "`args` was given but the cell has no input_matrix; build it with "
                "input_matrix=U of shape (n, m), or pass args=None."
            )
        u = evaluate_input(args, t)
        if jnp.issubdtype(u.dtype, jnp.complexfloating):
            raise TypeError("`args` (the input u) must be real, got a complex one; pass its parts.")
        m = self.input_matrix.shape[1]
        if u.shape != (m,):
            raise ValueError(
                f"`args` (the input u) must have shape ({m},), the number of columns of "
                f"input_matrix; got {u.shape}."
            )
        driven = self.input_matrix @ u.astype(self.input_matrix.dtype)
        return driven if self.bias is None else driven + self.bias


def parameters(
    operator: AbstractSkewOperator,
    activation: AbstractActivation,
    bias: object,
    input_matrix: object,
    damping: object,
) -> tuple[Array | None, Array | None, Array | None]:
    """Checks the parts of a cell and returns (bias, input_matrix, damping) in W's dtype."""
    if not isinstance(operator, AbstractSkewOperator):
        given = "a class" if isinstance(operator, type) else type(operator).__name__
        raise TypeError(
            f"`operator` must be a skew operator such as jaxdyn.DenseSkew.random(n, key=key), got "
            f"{given}; wrap a matrix with jaxdyn.DenseSkew.from_matrix(W)."
        )
    if not isinstance(activation, AbstractActivation):
        raise TypeError(
            f"`activation` must be an activation object such as jaxdyn.Tanh(), got "
            f"{activation!r}; wrap a function with jaxdyn.FunctionActivation(fn)."
        )
    n, dtype = operator.size, operator.dtype
    out = []
    for name, value, shapes in (
        ("bias", bias, {1: (n,)}),
        ("input_matrix", input_matrix, {2: (n, None)}),
        ("damping", damping, {0: (), 1: (n,)}),
    ):
        if value is None:
            out.append(None)
            continue
        check_constant(value, name)
        array = jnp.asarray(value, dtype)
        want = shapes.get(array.ndim)
        if want is None or any(w not in (None, s) for w, s in zip(want, array.shape, strict=True)):
            wanted = " or ".join(str(s).replace("None", "m") for s in shapes.values())
            raise ValueError(f"`{name}` must have shape {wanted} for {n} units, got {array.shape}.")
        out.append(array)
    return out[0], out[1], out[2]


def check_state(x: Any, n: int, name: str = "x") -> Float[Array, " n"]:
    """`x` as one state of n units, or an error that says what is wrong with it."""
    try:
        state = jnp.asarray(x)
    except (TypeError, ValueError) as e:
        raise TypeError(
            f"`{name}` must be an array of real numbers of shape ({n},), got {x!r}."
        ) from e
    if state.shape != (n,):
        raise ValueError(
            f"`{name}` must have shape ({n},), one number per unit of the cell; got "
            f"{state.shape}. Use jax.vmap for a batch of states."
        )
    if not jnp.issubdtype(state.dtype, jnp.floating):
        raise TypeError(
            f"`{name}` must be real and floating-point, got dtype {state.dtype}; convert it with "
            f"jnp.asarray({name}, float)."
        )
    return state


def cast(cell: Field, dtype: np.dtype) -> Field:
    """The cell with every floating-point parameter in `dtype`."""

    def needed(leaf):
        return eqx.is_inexact_array(leaf) and leaf.dtype != dtype

    if not any(map(needed, jax.tree.leaves(cell))):
        return cell
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if needed(leaf) else leaf, cell)
