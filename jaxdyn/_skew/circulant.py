from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
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
from .formed import FormedSkew
from .norm import rescaled

# Up to here the matrix is faster in a batch on a CPU (1.1 times at 256, .7 times at 512 units).
_MATRIX_LIMIT = 256


class CirculantSkew(AbstractSkewOperator):
    """Units on a ring, each acting on the others by their distance: W_ij = c_(i - j mod n).

    Skewness is c_(n - k) = -c_k, so that c_0 = 0, and c_(n / 2) = 0 for even n. The Fourier modes
    diagonalise W: W x costs O(n log n), and the frequencies are closed form.

    **Arguments:**

    - `entries`: c_1 ... c_((n - 1) // 2), per model time unit.
    - `size`: the number of units n.

    **Raises:** ValueError when `entries` has another length.
    """

    entries: Float[Array, " k"]
    size: int = eqx.field(static=True)

    def __init__(self, entries: Any, size: int):
        self.entries = free_entries(entries, "entries", 1)
        self.size = check_size(size, 1, "an operator needs a unit", "size")
        if self.entries.size != (self.size - 1) // 2:
            raise ValueError(
                f"`entries` must have shape ({(self.size - 1) // 2},) for a ring of "
                f"{self.size} units, got {self.entries.shape}."
            )

    def _column(self) -> Float[Array, " n"]:
        middle = jnp.zeros(self.size - 1 - 2 * self.entries.size, self.dtype)
        zero = jnp.zeros(1, self.dtype)
        return jnp.concatenate([zero, self.entries, middle, -self.entries[::-1]])

    def _symbol(self) -> Float[Array, " k"]:
        """The imaginary parts of the eigenvalues on the modes exp(2 pi i j k / n), j <= n / 2."""
        return jnp.fft.rfft(self._column()).imag

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        modes = jnp.fft.rfft(x)
        symbol = self._symbol()
        turned = lax.complex(-symbol * modes.imag, symbol * modes.real)
        return jnp.fft.irfft(turned, n=self.size)

    def as_matrix(self) -> Float[Array, "n n"]:
        i = np.arange(self.size)
        return self._column()[(i[:, None] - i[None, :]) % self.size]

    def frequencies(self) -> Float[Array, " k"]:
        """|2 sum_k c_k sin(2 pi j k / n)| for the modes j = 1 ... (n - 1) // 2, in closed form.

        **Returns:** shape (n // 2,), ascending, >= 0, in radians per model time unit; for even n
        the alternating mode stands still. Differentiable where they differ and are not 0.
        """
        half = (self.size - 1) // 2
        moving = jnp.abs(self._symbol()[1 : half + 1])
        return jnp.sort(jnp.pad(moving, (self.size // 2 - half, 0)))

    def kernel(self) -> Float[Array, "k n"]:
        """The constant vector, the alternating one for even n, and the modes that stand still.

        A mode stands still when its frequency is at most n eps |W|_2. Eager only, as its size
        depends on values.

        **Returns:** shape (k, n), k >= 1.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        n = self.size
        symbol = np.abs(np.asarray(self._symbol()))
        still = symbol <= n * float(jnp.finfo(self.dtype).eps) * symbol.max()
        rows = []
        for j in np.flatnonzero(still):
            angles = 2 * np.pi * ((j * np.arange(n)) % n) / n
            if 2 * j % n == 0:
                rows.append(np.cos(angles) / np.sqrt(n))
            else:
                rows += [np.cos(angles) * np.sqrt(2 / n), np.sin(angles) * np.sqrt(2 / n)]
        return jnp.asarray(np.stack(rows), self.dtype)

    def _materialise(self) -> AbstractSkewOperator:
        return FormedSkew(self.as_matrix()) if self.size <= _MATRIX_LIMIT else self

    def _subdiagonal(self) -> Float[Array, " k"]:
        return jnp.broadcast_to(self._column()[1:2], (self.size - 1,))

    @classmethod
    def random(
        cls, n: int, *, key: Array, scale: RealScalar = 1.0, dtype: Any = None
    ) -> "CirculantSkew":
        """Independent Gaussian c_k, rescaled to |W|_2 = `scale` in closed form.

        **Arguments:**

        - `n`: number of units, at least 3.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.
        """
        n = check_size(n, 3, "on a smaller ring the only skew circulant matrix is 0")
        check_key(key)
        check_scale(scale)
        op = cls(jr.normal(key, ((n - 1) // 2,), float_dtype(dtype)), n)
        return rescaled(op, op.frequencies()[-1], scale)

    @classmethod
    def from_matrix(cls, W: Any) -> "CirculantSkew":
        """The first column of `W`, eagerly.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.

        **Raises:** ValueError when `W` is not square, finite and skew, or not circulant (it says
        how much would be lost); TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        i = np.arange(n)
        lost = matrix - matrix[(i[:, None] - i[None, :]) % n, 0]
        refuse_structure(cls, lost, matrix, "W_ij depends on i - j mod n only")
        return cls(matrix[1 : (n - 1) // 2 + 1, 0], n)
