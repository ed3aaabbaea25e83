from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from .._types import RealScalar
from .base import AbstractSkewOperator
from .checks import check_key, check_scale, check_size, float_dtype, skew_matrix
from .coloring import Coloring, singletons
from .norm import gaussian_skew


class FormedSkew(AbstractSkewOperator):
    """A skew operator with its matrix written out, for when W x is wanted many times.

    `lineax.materialise` makes it from an operator whose matrix is its fastest product, and it
    keeps that operator's colouring. Its leaf is all of W, so a gradient step on it need not be
    skew: train the operator it came from.

    **Arguments:**

    - `matrix`: W, shape (n, n), skew (unchecked: use `from_matrix` to check).
    - `classes`: the colouring, one class per unit when None.
    """

    matrix: Float[Array, "n n"]
    classes: Coloring | None = eqx.field(static=True)

    def __init__(self, matrix: Float[Array, "n n"], classes: Coloring | None = None):
        self.matrix = matrix
        self.classes = classes

    @property
    def size(self) -> int:
        return self.matrix.shape[-1]

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.matmul(self.matrix, x, precision=Precision.HIGHEST)

    def as_matrix(self) -> Float[Array, "n n"]:
        return self.matrix

    def coloring(self) -> "tuple[slice | np.ndarray, ...]":
        return singletons(self.size) if self.classes is None else self.classes.classes

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        return jnp.matmul(self.matrix[:, units], g, precision=Precision.HIGHEST)

    @classmethod
    def random(
        cls, n: int, *, key: Array, scale: RealScalar = 1.0, dtype: Any = None
    ) -> "FormedSkew":
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        check_scale(scale)
        lower = gaussian_skew(n, key, scale, float_dtype(dtype))
        return cls(lower - lower.T)

    @classmethod
    def from_matrix(cls, W: Any) -> "FormedSkew":
        return cls(jnp.asarray(skew_matrix(W)))
