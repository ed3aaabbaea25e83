from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
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
from .norm import rescaled


class BlockSkew(AbstractSkewOperator):
    """Pairs of units: W = diag of [[0, w_k], [-w_k, 0]], n / 2 uncoupled oscillators.

    Units 2k and 2k + 1 form pair k. Each pair is the two-unit network, whose orbits are known
    in closed form for tanh. n is even: an odd unit would be a constant.

    **Arguments:**

    - `omega`: the angular frequencies w_k of either sign, shape (n / 2,), in radians per model time
      unit.
    """

    omega: Float[Array, " k"]

    def __init__(self, omega: Any):
        self.omega = free_entries(omega, "omega", 1)
        if self.omega.size == 0:
            raise ValueError("`omega` is empty; it needs at least one frequency (two units).")

    @property
    def size(self) -> int:
        return 2 * self.omega.shape[-1]

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return _interleave(self.omega * x[1::2], -self.omega * x[::2])

    def as_matrix(self) -> Float[Array, "n n"]:
        M = jnp.diag(self._subdiagonal(), -1)
        return M - M.T

    def frequencies(self) -> Float[Array, " k"]:
        """|w_k| in ascending order: shape (n // 2,), in radians per model time unit.

        Differentiable where they differ and are not 0.
        """
        return jnp.sort(jnp.abs(self.omega))

    def kernel(self) -> Float[Array, "k n"]:
        """The unit vectors of the pairs that stand still, |w_k| <= n eps |W|_2; eager only.

        **Returns:** shape (k, n), k even.

        **Raises:** ValueError under jit, grad or vmap.
        """
        self._refuse_traced("kernel")
        omega = np.abs(np.asarray(self.omega))
        still = omega <= self.size * float(jnp.finfo(self.dtype).eps) * omega.max()
        return jnp.asarray(np.eye(self.size)[np.repeat(still, 2)], self.dtype)

    def coloring(self) -> tuple[slice, ...]:
        """Two classes: the even units and the odd units."""
        return (slice(0, self.size, 2), slice(1, self.size, 2))

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        zero = jnp.zeros_like(g)
        return _interleave(zero, -self.omega * g) if c == 0 else _interleave(self.omega * g, zero)

    def _is_tridiagonal(self) -> bool:
        return True

    def _subdiagonal(self) -> Float[Array, " k"]:
        return _interleave(-self.omega, jnp.zeros_like(self.omega))[:-1]

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar | None = None,
        dtype: Any = None,
        frequencies: Any = None,
    ) -> "BlockSkew":
        """Gaussian frequencies rescaled to max |w_k| = |W|_2 = `scale`, or those given.

        **Arguments:**

        - `n`: number of units, even.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit, 1 when None.
        - `dtype`: float32 or float64, JAX's default when None.
        - `frequencies`: shape (n / 2,), the w_k themselves, instead of `scale`.

        **Raises:** ValueError for an odd `n`, or both `scale` and `frequencies`.
        """
        n = check_size(n, 2, "units come in pairs")
        check_key(key)
        if n % 2:
            raise ValueError(
                f"`n` must be even for pairs of units, got {n}; SpectralSkew takes any."
            )
        omega = random_frequencies(n, key, scale, dtype, frequencies)
        return cls(omega)

    @classmethod
    def from_matrix(cls, W: Any) -> "BlockSkew":
        """The frequencies of a block-diagonal matrix.

        **Arguments:**

        - `W`: shape (n, n), n even, skew to a few rounding errors; integers are promoted.

        **Raises:** ValueError when `W` is not square, finite and skew, of odd size, or not block
        diagonal (it says how much would be lost); TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        if n % 2:
            raise ValueError(
                f"`W` must have an even number of units, got {n}; DenseSkew takes any."
            )
        even = np.arange(0, n, 2)
        lost = matrix.copy()
        lost[even, even + 1] = lost[even + 1, even] = 0
        refuse_structure(cls, lost, matrix, "2 x 2 blocks on the diagonal")
        return cls(matrix[even, even + 1])


def random_frequencies(
    n: int, key: Array, scale: RealScalar | None, dtype: Any, frequencies: Any
) -> Float[Array, " k"]:
    """n // 2 Gaussian frequencies with max |w_k| = scale, or the given `frequencies`."""
    dtype = float_dtype(dtype)
    if frequencies is None:
        scale = 1.0 if scale is None else scale
        check_scale(scale)
        omega = jr.normal(key, (n // 2,), dtype)
        return rescaled(omega, jnp.abs(omega).max(), scale)
    if scale is not None:
        raise ValueError("Give `scale` or `frequencies`, not both: the largest frequency is |W|_2.")
    omega = free_entries(frequencies, "frequencies", 1)
    if omega.shape != (n // 2,):
        raise ValueError(f"`frequencies` must have shape ({n // 2},), got {omega.shape}.")
    return omega.astype(dtype)


def _interleave(even: Float[Array, " k"], odd: Float[Array, " k"]) -> Float[Array, " n"]:
    # Stacked behind the pairs, so that a batch in the minor axis stays there.
    return jnp.stack([even, odd], axis=1).reshape(-1)
