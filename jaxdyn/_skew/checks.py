"""What every skew operator checks before it is built: entries, matrices, sizes, scales."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._types import is_traced


def free_entries(value: Any, name: str, ndim: int) -> Array:
    """`value` as a real floating array of `ndim` axes; integers take the default float type."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be an array of real numbers, got {type(value).__name__}."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        array = array.astype(float)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be real floating, got dtype {array.dtype}.")
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} axes, got shape {array.shape}.")
    return array


def check_size(n: Any, minimum: int, reason: str, name: str = "n") -> int:
    """`n` as a Python int of at least `minimum`."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"`{name}` must be a Python int (a number of units), got {n!r}.")
    if n < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {n}: {reason}.")
    return int(n)


def check_scale(scale: Any) -> None:
    """`scale` is one real number >= 0. A traced scale has no value to look at and passes."""
    if is_traced(scale):
        if scale.ndim != 0:
            raise ValueError(f"`scale` must be one number, got shape {scale.shape}.")
        return
    try:
        if isinstance(scale, str | bytes):
            raise TypeError
        value = float(scale)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`scale` must be one real number, the spectral norm wanted, got {scale!r}."
        ) from error
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`scale` must be finite and >= 0 (it is a norm), got {value}.")


def check_key(key: Any) -> None:
    """`key` is a JAX random key, typed or raw."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"`key` must be a JAX random key such as jax.random.key(0), got {key!r}.")


def float_dtype(dtype: Any) -> np.dtype:
    """`dtype` as a real floating type that JAX can hold now; None is JAX's default float."""
    wanted = np.dtype(jnp.zeros(()).dtype) if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(wanted, jnp.floating):
        raise TypeError(f"`dtype` must be real floating (float32 or float64), got {wanted}.")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"`dtype` is {wanted}, but 64-bit types are off: "
            'jax.config.update("jax_enable_x64", True), or dtype=jnp.float32.'
        )
    return wanted


def skew_matrix(W: Any) -> np.ndarray:
    """`W` as a numpy matrix that is exactly skew: its strict lower triangle and minus that.

    `W` may miss skewness by rounding, `max |W + W^T| <= 8 eps max |W|`; anything worse raises.
    """
    if is_traced(W):
        raise ValueError(
            "from_matrix looks at the values of `W`, which are unknown under jit, grad or vmap: "
            "call it outside, or build the operator from its free entries instead, e.g. "
            "DenseSkew(W[jnp.tril_indices(n, -1)])."
        )
    try:
        matrix = np.asarray(W)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`W` must be a square matrix, got {type(W).__name__}.") from error
    if np.issubdtype(matrix.dtype, np.integer) or matrix.dtype == np.bool_:
        matrix = matrix.astype(jnp.zeros(()).dtype)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise TypeError(f"`W` must be real floating, got dtype {matrix.dtype}.")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`W` must be a square matrix (n, n), got shape {matrix.shape}.")
    if matrix.shape[0] == 0:
        raise ValueError("`W` has no units (shape (0, 0)); it needs at least one.")
    if not np.isfinite(matrix).all():
        raise ValueError("`W` holds NaN or infinite entries; every entry must be finite.")
    defect = float(np.abs(matrix + matrix.T).max())
    size = float(np.abs(matrix).max())
    if defect > 8 * float(jnp.finfo(matrix.dtype).eps) * size:
        raise ValueError(
            f"`W` is not skew-symmetric: max |W + W^T| = {defect:.3g}, {defect / size:.3g} of "
            "max |W|. Give its skew part, (W - W.T) / 2, if that is what you mean."
        )
    lower = np.tril(matrix, -1)
    lower = lower.astype(jax.dtypes.canonicalize_dtype(matrix.dtype))
    return lower - lower.T


def refuse_structure(cls: type, lost: np.ndarray, W: np.ndarray, wanted: str) -> None:
    """Raises when `lost`, the part of `W` that `cls` cannot hold, is more than rounding."""
    worst = float(np.abs(lost).max(initial=0.0))
    size = float(np.abs(W).max())
    if worst > 8 * float(jnp.finfo(W.dtype).eps) * size:
        raise ValueError(
            f"`W` does not have the structure of {cls.__name__} ({wanted}): entries up to "
            f"{worst:.3g}, {worst / size:.3g} of max |W|, would be lost. DenseSkew holds any "
            "skew matrix."
        )


def check_vector(x: Any, n: int, name: str) -> Float[Array, " n"]:
    """`x` as a real floating vector of `n` entries."""
    x = jnp.asarray(x)
    if x.shape != (n,):
        raise ValueError(
            f"`{name}` must have shape ({n},), got {x.shape}; use jax.vmap for a batch of vectors."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be real floating, got dtype {x.dtype}.")
    return x
