import inspect
from collections.abc import Callable, Hashable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import Args, RealScalar
from .base import AbstractVectorField
from .input import AbstractInputs


class VectorField(AbstractVectorField):
    """A function (t, x, args) of the user, of which nothing more is known, as x' of n units."""

    fn: Callable
    units: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        return self.units

    def __call__(self, t: RealScalar, x: Float[Array, " n"], args: Args) -> Float[Array, " n"]:
        return jnp.asarray(self.fn(t, x, args), x.dtype)


class FieldArgs(AbstractInputs):
    """The `args` of such a function: anything, the same for all trajectories."""

    args: Any

    def __init__(self, args: Any, dtype: Any):
        """Floats go into `dtype`, Python's too, because a new one would else compile anew."""

        def converted(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float):
                return leaf
            leaf = jnp.asarray(leaf)
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        self.args = jax.tree.map(converted, args)

    def __call__(self, i: Array | int) -> Args:
        return self.args

    def stacked(self) -> tuple[Args, bool]:
        return self.args, False


def field_of(fn: Callable, x0: Float[Array, "..."], args: Args) -> VectorField:
    """`fn` as a vector field on states such as `x0`.

    **Raises:** TypeError or ValueError when it is no function (t, x, args) that returns an x'.
    """
    args = FieldArgs(args, x0.dtype).args
    for leaf in jax.tree.leaves(eqx.filter(args, eqx.is_array, inverse=True)):
        if not isinstance(leaf, Hashable):
            raise TypeError(
                "`args` may hold arrays, numbers and what can be hashed, got a "
                f"{type(leaf).__name__}; make it an eqx.Module."
            )
    number, one = jnp.zeros((), x0.dtype), jax.ShapeDtypeStruct(x0.shape[-1:], x0.dtype)
    try:
        inspect.signature(fn).bind(number, one, args)
    except (TypeError, ValueError) as e:
        raise TypeError(
            f"`cell` must be a jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell, or a function "
            f"f(t, x, args) that returns x', got {fn!r}."
        ) from e
    out = eqx.filter_eval_shape(fn, number, one, args)
    wanted = f"must return x' as one real array of shape {one.shape}, that of a state"
    shape = getattr(out, "shape", None)
    if shape != one.shape:
        got = type(out).__name__ if shape is None else f"shape {shape}"
        if x0.ndim == 2 and shape == x0.shape:
            got += "; `args` are the same for all trajectories, jax.vmap gives each its own"
        raise ValueError(f"`cell` is a function and {wanted}, got {got}; see jnp.stack.")
    if not any(jnp.issubdtype(out.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"`cell` is a function and {wanted}, got dtype {out.dtype}.")
    return VectorField(fn, x0.shape[-1])
