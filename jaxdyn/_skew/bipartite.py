from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from .._types import RealScalar
from .base import AbstractSkewOperator
from .checks import (
    check_key,
    check_scale,
    check_size,
    float_dtype,
    free_entries,
    refuse_structure,
    skew_matrix,
)
from .norm import matrix_norm, rescaled


class BipartiteSkew(AbstractSkewOperator):
    """Two groups of units that act on each other only: W = [[0, B], [-B^T, 0]].

    Positions and momenta: a splitting step is the leapfrog, two stages whatever n is, and every
    frequency is a singular value of B. This is the weight matrix of a Hamiltonian network
    (H-DNN, Galimberti et al. 2023, arXiv 2105.13205).

    **Arguments:**

    - `coupling`: B, shape (p, q), p + q = n, per model time unit.
    """

    coupling: Float[Array, "p q"]

    def __init__(self, coupling: Any):
        self.coupling = free_entries(coupling, "coupling", 2)
        if self.size == 0:
            raise ValueError("`coupling` has no units (shape (0, 0)); it needs at least one.")

    @property
    def size(self) -> int:
        return sum(self.coupling.shape[-2:])

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        p = self.coupling.shape[0]
        return jnp.concatenate([self._first(x[p:]), self._second(x[:p])])

    def _first(self, g: Float[Array, " q"]) -> Float[Array, " p"]:
        return jnp.matmul(self.coupling, g, precision=Precision.HIGHEST)

    def _second(self, g: Float[Array, " p"]) -> Float[Array, " q"]:
        return -jnp.matmul(self.coupling.T, g, precision=Precision.HIGHEST)

    def as_matrix(self) -> Float[Array, "n n"]:
        B = self.coupling
        p, q = B.shape
        return jnp.block([[jnp.zeros((p, p), B.dtype), B], [-B.T, jnp.zeros((q, q), B.dtype)]])

    def frequencies(self) -> Float[Array, " k"]:
        """The singular values of B and zeros: O(n^3) still, but of half the size.

        **Returns:** shape (n // 2,), ascending, >= 0, in radians per model time unit;
        differentiable where they differ.
        """
        s = jnp.linalg.svd(self.coupling, compute_uv=False)
        return jnp.concatenate([jnp.zeros(self.size // 2 - s.size, s.dtype), s[::-1]])

    def kernel(self) -> Float[Array, "k n"]:
        """An orthonormal basis of ker W = ker B^T + ker B: each row lives in one group.

        A singular value decomposition of B; a singular value of at most n eps |W|_2 counts as
        zero. Eager only, as its size depends on values.

        **Returns:** shape (k, n), k >= |p - q|.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        B = np.asarray(self.coupling).astype(np.float64)
        p, q = B.shape
        u, s, vh = np.linalg.svd(B)
        tolerance = self.size * float(jnp.finfo(self.dtype).eps) * s.max(initial=0.0)
        rank = int((s > tolerance).sum())
        rows = np.zeros((p + q - 2 * rank, p + q))
        rows[: p - rank, :p] = u[:, rank:].T
        rows[p - rank :, p:] = vh[rank:]
        return jnp.asarray(rows, self.dtype)

    def coloring(self) -> "tuple[slice | np.ndarray, ...]":
        """Two classes, the groups (one when the other is empty)."""
        p, q = self.coupling.shape[-2:]
        return tuple(c for c in (slice(0, p), slice(p, p + q)) if c.stop > c.start)

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        p, q = self.coupling.shape
        if isinstance(units, slice) and units.start == 0 and p > 0:
            return jnp.concatenate([jnp.zeros(p, g.dtype), self._second(g)])
        return jnp.concatenate([self._first(g), jnp.zeros(q, g.dtype)])

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar = 1.0,
        dtype: Any = None,
        split: int | None = None,
    ) -> "BipartiteSkew":
        """Independent Gaussian entries of B, rescaled to |W|_2 = |B|_2 = `scale`.

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.
        - `split`: p, the size of the first group, 1 <= p < n, (n + 1) // 2 when None.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        check_scale(scale)
        p = (n + 1) // 2 if split is None else _check_split(split, 1, n - 1)
        B = jr.normal(key, (p, n - p), float_dtype(dtype))
        return cls(rescaled(B, matrix_norm(B), scale))

    @classmethod
    def from_matrix(cls, W: Any, *, split: int | None = None) -> "BipartiteSkew":
        """B of a matrix whose first p and last n - p units are not coupled among themselves.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.
        - `split`: p; None finds it, the one nearest n / 2 where several fit.

        **Raises:** ValueError when `W` is not square, finite and skew, or not of this form (it
        says how much would be lost); TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        p = _find_split(matrix) if split is None else _check_split(split, 0, n)
        lost = np.concatenate([matrix[:p, :p].ravel(), matrix[p:, p:].ravel()])
        refuse_structure(cls, lost, matrix, f"blocks of {p} and {n - p} units are zero")
        return cls(matrix[:p, p:])


def _check_split(split: Any, lowest: int, highest: int) -> int:
    if isinstance(split, bool) or not isinstance(split, int):
        raise TypeError(f"`split` must be a Python int, got {split!r}.")
    if not lowest <= split <= highest:
        raise ValueError(f"`split` must lie between {lowest} and {highest}, got {split}.")
    return split


def _find_split(matrix: np.ndarray) -> int:
    n = matrix.shape[0]
    rows, cols = np.nonzero(np.tril(matrix))
    # Coupled units i > j lie on two sides of the split: j < p <= i for each such pair.
    least = int(cols.max()) + 1 if cols.size else 0
    most = int(rows.min()) if rows.size else n
    return min(max((n + 1) // 2, least), max(most, least))
