from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from .._types import RealScalar
from .base import AbstractSkewOperator
from .checks import check_key, check_scale, check_size, float_dtype, free_entries, skew_matrix
from .formed import FormedSkew
from .norm import gaussian_skew


class DenseSkew(AbstractSkewOperator):
    """Any skew matrix: W = L - L^T, with the strict lower triangle L free.

    **Arguments:**

    - `entries`: L row by row, `L[1,0], L[2,0], L[2,1], L[3,0], ...`, shape (n (n - 1) / 2,), per
      model time unit; n follows from the length. No entry means n = 1.

    **Raises:** ValueError when the length is no triangular number.
    """

    entries: Float[Array, " k"]

    def __init__(self, entries: Any):
        self.entries = free_entries(entries, "entries", 1)
        n, count = self.size, self.entries.size
        if n * (n - 1) // 2 != count:
            raise ValueError(
                f"`entries` has {count} numbers, which fill no strict lower triangle: n units "
                f"take n (n - 1) / 2, that is {n * (n - 1) // 2} for n = {n} and "
                f"{n * (n + 1) // 2} for n = {n + 1}."
            )

    @property
    def size(self) -> int:
        # count = n (n - 1) / 2 solved for n; the last axis, as stacked operators have more.
        return (1 + int(np.sqrt(1 + 8 * self.entries.shape[-1]))) // 2

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.matmul(self.as_matrix(), x, precision=Precision.HIGHEST)

    def as_matrix(self) -> Float[Array, "n n"]:
        n = self.size
        rows, cols = (index.astype(np.int32) for index in np.tril_indices(n, -1))
        L = jnp.zeros((n, n), self.dtype)
        # Without the promise XLA folds a bounds check over all entries: 12 s at n = 3000.
        L = L.at[rows, cols].set(
            self.entries, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds"
        )
        return L - L.T

    def _materialise(self) -> FormedSkew:
        return FormedSkew(self.as_matrix())

    @classmethod
    def random(
        cls, n: int, *, key: Array, scale: RealScalar = 1.0, dtype: Any = None
    ) -> "DenseSkew":
        """Independent Gaussian entries, rescaled to |W|_2 = `scale`.

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm, the fastest angular frequency of the linear network, in
          radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.

        The scale is met to rounding up to n = 2000 (a dense eigenvalue problem), and to 1e-6 by a
        Lanczos recurrence beyond.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0, DenseSkew(jnp.zeros(0))")
        check_key(key)
        check_scale(scale)
        lower = gaussian_skew(n, key, scale, float_dtype(dtype))
        return cls(lower[np.tril_indices(n, -1)])

    @classmethod
    def from_matrix(cls, W: Any) -> "DenseSkew":
        """The lower triangle of `W`, eagerly.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.

        **Raises:** ValueError when `W` is not square, finite and skew, TypeError when not real.
        """
        matrix = skew_matrix(W)
        return cls(matrix[np.tril_indices(matrix.shape[0], -1)])
