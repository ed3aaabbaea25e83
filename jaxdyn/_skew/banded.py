from typing import Any

import jax.lax as lax
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
from .coloring import Coloring
from .formed import FormedSkew
from .norm import operator_norm, rescaled


class BandedSkew(AbstractSkewOperator):
    """Units on a line that act on neighbours up to a distance: W_ij = 0 for |i - j| > bandwidth.

    W x costs 2 n bandwidth multiplications. A splitting step has bandwidth + 1 stages, and with
    bandwidth 1 lineax solves 1 - h W in O(n) by its tridiagonal solver.

    **Arguments:**

    - `bands`: the sub-diagonals from the first on, shapes (n - 1,), (n - 2,), ..., per model time
      unit; `bands[k - 1][j]` is W[j + k, j].

    **Raises:** ValueError when the lengths do not go down one by one, TypeError for mixed dtypes.
    """

    bands: tuple[Float[Array, " _"], ...]

    def __init__(self, bands: Any):
        if not isinstance(bands, tuple | list) or not bands:
            raise TypeError(
                "`bands` must be a tuple of at least one array, one for each sub-diagonal, got "
                f"{type(bands).__name__} of {len(bands) if hasattr(bands, '__len__') else 1}."
            )
        self.bands = tuple(free_entries(a, f"bands[{k}]", 1) for k, a in enumerate(bands))
        lengths = [a.size for a in self.bands]
        if lengths != [max(lengths[0] - k, 0) for k in range(len(lengths))]:
            raise ValueError(
                f"`bands` must have lengths n - 1, n - 2, ..., got {lengths} for n = {self.size}."
            )
        if len(bands) > max(self.size - 1, 1):
            raise ValueError(
                f"`bands` has {len(bands)} sub-diagonals, but n = {self.size} units have "
                f"{self.size - 1}."
            )
        if len({a.dtype for a in self.bands}) > 1:
            raise TypeError(
                f"`bands` have dtypes {[str(a.dtype) for a in self.bands]}; give all in one."
            )

    @property
    def size(self) -> int:
        return self.bands[0].shape[-1] + 1

    @property
    def bandwidth(self) -> int:
        """The number of sub-diagonals."""
        return len(self.bands)

    def _mv(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        # One padded x, then slices: a pad for each band fuses badly (30 times slower in a scan).
        n, width = self.size, self.bandwidth
        padded = jnp.pad(x, (width, width))
        y = jnp.zeros_like(x)
        for k, a in enumerate(self.bands, start=1):
            before, after = padded[width - k : width - k + n], padded[width + k : width + k + n]
            y = y + jnp.pad(a, (k, 0)) * before - jnp.pad(a, (0, k)) * after
        return y

    def as_matrix(self) -> Float[Array, "n n"]:
        M = jnp.zeros((self.size, self.size), self.dtype)
        for k, a in enumerate(self.bands, start=1):
            M = M + jnp.diag(a, -k)
        return M - M.T

    def coloring(self) -> tuple[slice, ...]:
        """bandwidth + 1 classes of equally spaced units."""
        step = min(self.bandwidth + 1, self.size)
        return tuple(slice(c, self.size, step) for c in range(step))

    def _color_mv(
        self, c: int, units: "slice | np.ndarray", g: Float[Array, " k"]
    ) -> Float[Array, " n"]:
        # The rows between two units of the class hear only these two. Row m of `between` holds
        # the `step` rows from unit number m - 1 of the class to just before the next.
        n, step, count = self.size, self.bandwidth + 1, g.size
        if n <= step:
            return super()._color_mv(c, units, g)
        # Else XLA computes whatever made g anew for each column (4 times slower for tanh).
        g = lax.optimization_barrier(g)
        columns = [jnp.zeros(count + 1, g.dtype)]
        for k in range(1, step):
            below = self.bands[k - 1][c::step]
            column = jnp.pad(below * g[: below.size], (1, count - below.size))
            back = step - k
            skipped = 0 if c >= back else 1
            above = self.bands[back - 1][c - back + skipped * step :: step][: count - skipped]
            columns.append(column - jnp.pad(above * g[skipped:], (skipped, 1)))
        between = jnp.stack(columns, axis=1).reshape(-1)
        return between[step - c : step - c + n]

    def _materialise(self) -> AbstractSkewOperator:
        if 4 * self.bandwidth < self.size:
            return self
        return FormedSkew(self.as_matrix(), Coloring(self.coloring()))

    def _is_tridiagonal(self) -> bool:
        return self.bandwidth == 1

    def _subdiagonal(self) -> Float[Array, " k"]:
        return self.bands[0]

    @classmethod
    def random(
        cls,
        n: int,
        *,
        key: Array,
        scale: RealScalar = 1.0,
        dtype: Any = None,
        bandwidth: int = 1,
    ) -> "BandedSkew":
        """Independent Gaussian entries, rescaled to |W|_2 = `scale`.

        **Arguments:**

        - `n`: number of units, at least 2.
        - `key`: JAX random key.
        - `scale`: the spectral norm, in radians per model time unit.
        - `dtype`: float32 or float64, JAX's default when None.
        - `bandwidth`: number of sub-diagonals, 1 <= bandwidth < n.

        The scale is met to rounding up to n = 2000 (a dense eigenvalue problem), and to 1e-6 by a
        Lanczos recurrence beyond.
        """
        n = check_size(n, 2, "the only skew matrix of one unit is 0")
        check_key(key)
        check_scale(scale)
        bandwidth = _check_bandwidth(bandwidth, n)
        keys = jr.split(key, bandwidth)
        dtype = float_dtype(dtype)
        op = cls(tuple(jr.normal(keys[k - 1], (n - k,), dtype) for k in range(1, bandwidth + 1)))
        return rescaled(op, operator_norm(op), scale)

    @classmethod
    def from_matrix(cls, W: Any, *, bandwidth: int | None = None) -> "BandedSkew":
        """The sub-diagonals of `W`, eagerly.

        **Arguments:**

        - `W`: shape (n, n), skew to a few rounding errors; integers are promoted.
        - `bandwidth`: how many; None takes as many as hold an entry, at least one.

        **Raises:** ValueError when `W` is not square, finite and skew, or has entries beyond
        `bandwidth` (it says how large); TypeError when not real.
        """
        matrix = skew_matrix(W)
        n = matrix.shape[0]
        if bandwidth is None:
            rows, cols = np.nonzero(matrix)
            bandwidth = max(1, int((rows - cols).max(initial=0)))
        else:
            bandwidth = _check_bandwidth(bandwidth, max(n, 2))
        lost = np.tril(matrix, -bandwidth - 1)
        refuse_structure(cls, lost, matrix, f"zero beyond {bandwidth} sub-diagonals")
        bands = [np.diagonal(matrix, -k) for k in range(1, bandwidth + 1)]
        return cls(tuple(bands) if n > 1 else (np.zeros(0, matrix.dtype),))


def _check_bandwidth(bandwidth: Any, n: int) -> int:
    if isinstance(bandwidth, bool) or not isinstance(bandwidth, int):
        raise TypeError(f"`bandwidth` must be a Python int, got {bandwidth!r}.")
    if not 1 <= bandwidth < n:
        raise ValueError(f"`bandwidth` must lie between 1 and n - 1 = {n - 1}, got {bandwidth}.")
    return bandwidth
