from typing import Any

import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from .._types import RealScalar
from .base import AbstractSkewOperator
from .block import random_frequencies
from .checks import check_key, check_size, free_entries, skew_matrix
from .formed import FormedSkew
from .schur import skew_schur


class SpectralSkew(AbstractSkewOperator):
    """A skew matrix whose frequencies are parameters: W = Q diag([[0, w_k], [-w_k, 0]]) Q^T.

    Q = H_1 H_2 ... is a product of Householder reflections H_j = 1 - 2 v_j v_j^T / |v_j|^2, so it
    is orthogonal whatever the vectors are; a zero vector is no reflection. n - 1 vectors reach
    every skew matrix, fewer reach some. Odd n has one zero eigenvalue.

    W x is a product with the vectors and a triangular solve, as Q = 1 - V T^-1 V^T with
    V = (v_1 / |v_1|, ...) and T the strict upper triangle of V^T V plus 1/2 (Joffrain, Low,
    Quintana-Orti, van de Geijn and Van Zee 2006, ACM TOMS 32, 169).

    **Arguments:**

    - `omega`: the angular frequencies w_k of either sign, shape (n // 2,), in radians per model
      time unit.
    - `vectors`: v_j as rows, shape (m, n), m = 0 upwards.

    **Raises:** ValueError when the two shapes do not fit.
    """

    omega: Float[Array, " k"]
    vectors: Float[Array, "m n"]

    def __init__(self, omega: Any, vectors: Any):
        self.omega = free_entries(omega, "omega", 1)
        self.vectors = free_entries(vectors, "vectors", 2)
        n = self.size
        if n == 0 or self.omega.size != n // 2:
            raise ValueError(
                f"`vectors` of shape {self.vectors.shape} belong to n = {n} units, which have "
                f"{n // 2} frequencies, but `omega` has {self.omega.size}."
            )
        if self.omega.dtype != self.vectors.dtype:
            raise TypeError(
                f"`omega` is {self.omega.dtype} and `vectors` are {self.vectors.dtype}; "
                "give both in one precision."
            )

    @property
    def size(self) -> int:
        return self.vectors.shape[-1]

    def _factors(self) -> tuple[Float[Array, "n m"], Float[Array, "m m"]]:
        squares = jnp.sum(self.vectors**2, axis=1, keepdims=True)
        # Where-safe: a zero vector gives a zero column and a finite gradient.
        safe = jnp.where(squares > 0, squares, 1.0)
        V = jnp.where(squares > 0, self.vectors / jnp.sqrt(safe), 0.0).T
        gram = jnp.matmul(V.T, V, precision=Precision.HIGHEST)
        return V, jnp.triu(gram, 1) + jnp.eye(V.shape[1], dtype=V.dtype) / 2

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        V, T = self._factors()
        y = _reflect(V, T, x[:, None], transposed=True)
        m = 2 * self.omega.size
        even, odd = self.omega[:, None] * y[1:m:2], -self.omega[:, None] * y[:m:2]
        turned = jnp.stack([even, odd], axis=1).reshape(m, 1)
        return _reflect(V, T, jnp.concatenate([turned, jnp.zeros_like(y[m:])]))[:, 0]

    def as_matrix(self) -> Float[Array, "n n"]:
        V, T = self._factors()
        Q = _reflect(V, T, jnp.eye(self.size, dtype=self.dtype))
        m = 2 * self.omega.size
        M = jnp.matmul(Q[:, :m:2] * self.omega[None], Q[:, 1:m:2].T, precision=Precision.HIGHEST)
        return M - M.T

    def transpose(self) -> "SpectralSkew":
        """W^T = -W: the frequencies change sign."""
        return SpectralSkew(-self.omega, self.vectors)

    def frequencies(self) -> Float[Array, " k"]:
        """|w_k| in ascending order: shape (n // 2,), in radians per model time unit.

        Differentiable where they differ and are not 0.
        """
        return jnp.sort(jnp.abs(self.omega))

    def kernel(self) -> Float[Array, "k n"]:
        """The columns of Q that belong to |w_k| <= n eps |W|_2, and the last when n is odd.

        Eager only, as its size depends on values.

        **Returns:** shape (k, n), k with the parity of n.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        V, T = self._factors()
        Q = np.asarray(_reflect(V, T, jnp.eye(self.size, dtype=self.dtype)))
        omega = np.abs(np.asarray(self.omega))
        still = omega <= self.size * float(jnp.finfo(self.dtype).eps) * omega.max(initial=0.0)
        columns = np.concatenate([np.repeat(still, 2), np.ones(self.size % 2, bool)])
        return jnp.asarray(Q[:, columns].T)

    def _materialise(self) -> AbstractSkewOperator:
        # Four products with (n, m) vectors against one with (n, n); triangular solves are slow.
        formed = self.size <= 2000 or 4 * self.vectors.shape[0] >= self.size
        return FormedSkew(self.as_matrix()) if formed else self

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar | None = None,
        dtype: Any = None,
        frequencies: Any = None,
    ) -> "SpectralSkew":
        """Gaussian or given frequencies, turned by a uniformly distributed (Haar) Q.

        The vectors are those of the QR decomposition of a Gaussian matrix (Stewart 1980, SIAM J.
        Numer. Anal. 17, 403).

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm max |w_k|, in radians per model time unit, 1 when None.
        - `dtype`: float32 or float64, JAX's default when None.
        - `frequencies`: shape (n // 2,), the |w_k| themselves, instead of `scale`.

        **Raises:** ValueError for both `scale` and `frequencies`.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        key_omega, key_vectors = jr.split(key)
        omega = random_frequencies(n, key_omega, scale, dtype, frequencies)
        rows = jnp.triu(jr.normal(key_vectors, (n, n), omega.dtype))
        # The frame is that of a triangle with a positive diagonal: Q times these signs, which
        # the frequencies take over.
        signs = jnp.where(jnp.diagonal(rows) >= 0, 1.0, -1.0).astype(omega.dtype)
        m = 2 * omega.size
        lengths = signs * jnp.linalg.norm(rows, axis=1)
        vectors = (rows + jnp.diag(lengths))[: n - 1]
        # All reflections flip their sign but the last unit's, which has none.
        signs = jnp.concatenate([-signs[:-1], signs[-1:]])
        return cls(omega * signs[:m:2] * signs[1:m:2], vectors)

    @classmethod
    def from_matrix(cls, W: Any) -> "SpectralSkew":
        """The real Schur form of `W`, eagerly, in float64.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.

        **Returns:** an operator with n - 1 vectors whose matrix is `W` to about n eps |W|_2.

        **Raises:** ValueError when `W` is not square, finite and skew, TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        Q, omega = skew_schur(matrix)
        # LAPACK's QR of an orthogonal matrix: its reflections, then signs on the diagonal of R.
        h, tau = np.linalg.qr(Q, mode="raw")
        signs = np.sign(np.diagonal(h))
        vectors = np.triu(h, 1) + np.eye(n)
        vectors = np.where(tau[:, None] != 0, vectors, 0.0)[: n - 1]
        m = 2 * omega.size
        omega = omega * signs[:m:2] * signs[1:m:2]
        return cls(jnp.asarray(omega, matrix.dtype), jnp.asarray(vectors, matrix.dtype))


def _reflect(
    V: Float[Array, "n m"],
    T: Float[Array, "m m"],
    X: Float[Array, "n c"],
    transposed: bool = False,
) -> Float[Array, "n c"]:
    """Q X or Q^T X, with Q = 1 - V T^-1 V^T."""
    inner = jnp.matmul(V.T, X, precision=Precision.HIGHEST)
    inner = jsp.linalg.solve_triangular(T, inner, trans=1 if transposed else 0, lower=False)
    return X - jnp.matmul(V, inner, precision=Precision.HIGHEST)
