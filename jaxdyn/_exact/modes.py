"""Frequencies of tanh networks x' = W tanh x near a point of rest."""

import math

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .arguments import real, skew_matrix, state


def equilibrium_frequency(
    W: ArrayLike | lx.AbstractLinearOperator, l: ArrayLike
) -> Float[Array, "..."]:
    r"""Frequency of small oscillations about a point of rest of three tanh units. Exact.

    With $w = (-W_{23}, W_{13}, -W_{12})$, so that $W x = w \times x$ and $W w = 0$, the points of
    rest are $\tanh x = l\, w$, and $\Omega^2 = w_1^2 D_2 D_3 + w_2^2 D_1 D_3 + w_3^2 D_1 D_2$,
    $D_i = 1 - l^2 w_i^2$.

    **Arguments:**

    - `W`: a skew-symmetric matrix (3, 3), or an operator with `as_matrix()`.
    - `l`: any shape, $|l\, w_i| < 1$; $l = 0$ is the origin, where $\Omega = |w|$.

    **Returns:** $\Omega$ in radians per time unit, the shape of `l`.

    **Raises:** `ValueError` for another size, a matrix that is not skew-symmetric, or an `l` beyond
    the range above; traced values are not checked, and the result is then NaN or without meaning.
    """
    W = skew_matrix("W", W)
    if W.shape != (3, 3):
        raise ValueError(f"W must have shape (3, 3) for this formula, got {W.shape}")
    l = real("l", l)
    dtype = jnp.result_type(1.0, W, l)
    axis = jnp.stack([-W[1, 2], W[0, 2], -W[0, 1]]).astype(dtype)
    l = jnp.asarray(l, dtype)
    tilt = l[..., None] * axis.reshape((1,) * l.ndim + (3,))
    try:
        inside = bool(np.all(np.abs(np.asarray(tilt)) < 1))
    except jax.errors.TracerArrayConversionError:
        inside = True
    if not inside:
        limit = 1 / float(jnp.max(jnp.abs(axis)))
        raise ValueError(f"l must lie within ±{limit:g}, where |l w_i| < 1, got {l}")
    d1, d2, d3 = jnp.moveaxis(1 - tilt**2, -1, 0)
    square = axis[0] ** 2 * d2 * d3 + axis[1] ** 2 * d1 * d3 + axis[2] ** 2 * d1 * d2
    moving = square != 0
    return jnp.where(moving, jnp.sqrt(jnp.where(moving, square, 1.0)), 0.0)


def backbone(
    W: ArrayLike | lx.AbstractLinearOperator, x0: ArrayLike
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    r"""Frequencies of a tanh network and how energy shifts them. Leading order in the energy.

    With $W v_k = i w_k v_k$, $|v_k| = 1$, $E_k = |v_k^H x_0|^2$ and
    $P_{kl} = \sum_i |v_{ki}|^2 |v_{li}|^2$:
    $\Omega_k = w_k (1 - P_{kk} E_k - 2 \sum_{l \ne k} P_{kl} E_l)$, up to $O(E^2)$, away from
    resonances ($w_k \approx w_l$, $w_k \approx 3 w_l$, $2 w_k \approx w_l + w_m$ and so on): the
    backbone curves of the nonlinear normal modes. In odd dimension the one kernel vector $v_0$
    counts as one more l, with $E_0 = (v_0 \cdot x_0)^2/2$.

    **Arguments:**

    - `W`: a skew-symmetric matrix (n, n), n >= 2, or an operator with `as_matrix()`. Its spectrum
        must be simple: frequencies distinct and, but for the one that odd n forces, not 0.
    - `x0`: the state (n,), small: all that enters is its energies $E_k$, which are conserved to the
        order kept here.

    **Returns:** `(omega, Omega)`: the $w_k$ ascending and the shifted $\Omega_k$ in the same order,
    both of shape (n // 2,), in radians per time unit.

    **Raises:** `ValueError` for a matrix that is not skew-symmetric, a wrong shape, or a spectrum
    that is degenerate to within the square root of rounding; traced values are not checked, and at
    a degenerate spectrum the result has no meaning and its derivatives are not finite.
    """
    W = skew_matrix("W", W)
    n = W.shape[0]
    if n < 2:
        raise ValueError(f"W must have at least two units, got shape {W.shape}")
    x0 = state("x0", x0, n)
    dtype = jnp.result_type(1.0, W, x0)
    W, x0 = W.astype(dtype), x0.astype(dtype)
    # -iW is Hermitian with eigenvalues -w, (0,) w in ascending order.
    values, vectors = jnp.linalg.eigh(jax.lax.complex(jnp.zeros_like(W), -W))
    omega = values[n - n // 2 :]
    try:
        gap = float(np.min(np.diff(np.asarray(omega), prepend=0.0)))
        limit = math.sqrt(jnp.finfo(dtype).eps) * float(omega[-1])
    except jax.errors.TracerArrayConversionError:
        gap, limit = 1.0, 0.0
    if gap <= limit:
        raise ValueError(
            "W must have distinct frequencies, none 0 beyond the one zero that odd n forces; "
            f"got {np.asarray(omega)}. Modes that share a frequency exchange energy, and none has "
            "a frequency shift of its own"
        )

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    # The columns of w = 0 (odd n) and w > 0.
    vectors = vectors[:, n // 2 :]
    shape = jnp.abs(vectors) ** 2
    energies = jnp.abs(product(vectors.conj().T, jax.lax.complex(x0, jnp.zeros_like(x0)))) ** 2
    overlap = product(shape.T, shape)
    kernel = n % 2
    if kernel:
        energies = energies.at[0].mul(0.5)
    own = jnp.diagonal(overlap)[kernel:] * energies[kernel:]
    return omega, omega * (1 + own - 2 * product(overlap[kernel:], energies))
