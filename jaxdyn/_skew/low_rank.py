from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from .._types import RealScalar
from .base import AbstractSkewOperator
from .checks import check_key, check_scale, check_size, float_dtype, free_entries, skew_matrix
from .formed import FormedSkew
from .norm import rescaled
from .schur import skew_schur


class LowRankSkew(AbstractSkewOperator):
    """A few oscillating directions among many units: W = U V^T - V U^T, of rank at most 2 r.

    W x costs 4 n r multiplications, and ker W has at least n - 2 r dimensions: as many Casimirs.

    **Arguments:**

    - `left`: U, `right`: V, both shape (n, r); U V^T is per model time unit.

    **Raises:** ValueError when the shapes differ, TypeError when the dtypes do.
    """

    left: Float[Array, "n r"]
    right: Float[Array, "n r"]

    def __init__(self, left: Any, right: Any):
        self.left = free_entries(left, "left", 2)
        self.right = free_entries(right, "right", 2)
        if self.left.shape != self.right.shape or self.left.size == 0:
            raise ValueError(
                "`left` and `right` must have one shape (n, r), n and r at least 1, got "
                f"{self.left.shape} and {self.right.shape}."
            )
        if self.left.dtype != self.right.dtype:
            raise TypeError(
                f"`left` is {self.left.dtype} and `right` is {self.right.dtype}; "
                "give both in one precision."
            )

    @property
    def size(self) -> int:
        return self.left.shape[-2]

    @property
    def rank(self) -> int:
        """r; the rank of W is 2 r in general."""
        return self.left.shape[-1]

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        # Four thin products: joining U and V into one matrix would copy both.
        along_left = jnp.matmul(self.left.T, x, precision=Precision.HIGHEST)
        along_right = jnp.matmul(self.right.T, x, precision=Precision.HIGHEST)
        y = jnp.matmul(self.left, along_right, precision=Precision.HIGHEST)
        return y - jnp.matmul(self.right, along_left, precision=Precision.HIGHEST)

    def as_matrix(self) -> Float[Array, "n n"]:
        M = jnp.matmul(self.left, self.right.T, precision=Precision.HIGHEST)
        return M - M.T

    def transpose(self) -> "LowRankSkew":
        """W^T = -W: U and V change places."""
        return LowRankSkew(self.right, self.left)

    def frequencies(self) -> Float[Array, " k"]:
        """The positive imaginary parts of the spectrum, all but at most r of them zeros.

        A QR decomposition of [U V] and a dense problem of size 2 r: O(n r^2). From 2 r = n on, the
        dense problem of size n.

        **Returns:** shape (n // 2,), ascending, >= 0, in radians per model time unit;
        differentiable where those that are not zero differ and [U V] has independent columns.
        """
        n, r = self.left.shape
        if 2 * r >= n:
            return super().frequencies()
        inner = _small(jnp.concatenate([self.left, self.right], axis=1)).frequencies()
        return jnp.concatenate([jnp.zeros(n // 2 - r, inner.dtype), inner])

    def kernel(self) -> Float[Array, "k n"]:
        """An orthonormal basis of ker W, by a QR decomposition of [U V]: O(n^2 r); eager only.

        Frequencies up to n eps |W|_2 count as zero.

        **Returns:** shape (k, n), k >= n - 2 r.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        columns = np.concatenate([np.asarray(self.left), np.asarray(self.right)], axis=1)
        q, _ = np.linalg.qr(columns.astype(np.float64), mode="complete")
        inside = q[:, : min(columns.shape)]
        W = np.asarray(self.left).astype(np.float64) @ np.asarray(self.right).T
        W = inside.T @ (W - W.T) @ inside
        _, s, vh = np.linalg.svd(W)
        rows = self._kernel_rows(s, vh @ inside.T)
        outside = jnp.asarray(q[:, inside.shape[1] :].T, self.dtype)
        return jnp.concatenate([rows, outside])

    def _materialise(self) -> AbstractSkewOperator:
        formed = self.size <= 16 or 4 * self.rank >= self.size
        return FormedSkew(self.as_matrix()) if formed else self

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar = 1.0,
        dtype: Any = None,
        rank: int | None = None,
    ) -> "LowRankSkew":
        """Independent Gaussian U and V, rescaled to |W|_2 = `scale`.

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.
        - `rank`: r, 1 <= r <= n // 2, min(4, n // 2) when None.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        check_scale(scale)
        rank = min(4, n // 2) if rank is None else _check_rank(rank, n // 2)
        factors = jr.normal(key, (n, 2 * rank), float_dtype(dtype))
        norm = _small(factors).frequencies()[-1]
        # The factors share the scale evenly: |W| goes with their product.
        factors = rescaled(factors, jnp.sqrt(norm), jnp.sqrt(jnp.asarray(scale, norm.dtype)))
        return cls(factors[:, :rank], factors[:, rank:])

    @classmethod
    def from_matrix(cls, W: Any, *, rank: int | None = None) -> "LowRankSkew":
        """The real Schur form of `W`, eagerly, in float64: U and V its columns times sqrt(w_k).

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.
        - `rank`: r; None takes as many as there are frequencies above n eps |W|_2, at least one.

        **Returns:** an operator whose matrix is `W` to about n eps |W|_2.

        **Raises:** ValueError when `W` is not square, finite and skew, or has a rank above 2 r (it
        says how much would be lost); TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        Q, omega = skew_schur(matrix)
        floor = n * float(jnp.finfo(matrix.dtype).eps) * omega.max(initial=0.0)
        r = max(1, int((omega > floor).sum())) if rank is None else _check_rank(rank, None)
        if (omega[r:] > floor).any():
            raise ValueError(
                f"`W` has rank above 2 * {r}: a frequency of {omega[r]:.3g}, "
                f"{omega[r] / omega[0]:.3g} of |W|_2, would be lost; give a larger `rank`."
            )
        factors = np.zeros((2, n, r))
        kept = min(r, omega.size)
        factors[0, :, :kept] = Q[:, : 2 * kept : 2] * np.sqrt(omega[:kept])
        factors[1, :, :kept] = Q[:, 1 : 2 * kept : 2] * np.sqrt(omega[:kept])
        return cls(jnp.asarray(factors[0], matrix.dtype), jnp.asarray(factors[1], matrix.dtype))


def _small(factors: Float[Array, "n m"]) -> FormedSkew:
    """[U V] = Q R gives W = Q (R_u R_v^T - R_v R_u^T) Q^T: the matrix in the brackets."""
    R = jnp.linalg.qr(factors, mode="r")
    r = factors.shape[1] // 2
    M = jnp.matmul(R[:, :r], R[:, r:].T, precision=Precision.HIGHEST)
    return FormedSkew(M - M.T)


def _check_rank(rank: Any, highest: int | None) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"`rank` must be a Python int, got {rank!r}.")
    if rank < 1 or (highest is not None and rank > highest):
        limit = "" if highest is None else f" and at most n // 2 = {highest}"
        raise ValueError(f"`rank` must be at least 1{limit}, got {rank}.")
    return rank
