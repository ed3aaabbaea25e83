"""Checks that the closed forms share. What is being traced has no value yet: not checked."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


def _concrete(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None


def real(
    name: str, value: ArrayLike, lower: float = -math.inf, strict: bool = False
) -> float | int | Array:
    """`value` as a Python number or a float array, finite and >= lower (> lower if strict)."""
    kind = getattr(getattr(value, "dtype", None), "kind", "none")
    if isinstance(value, bool) or not (isinstance(value, float | int) or kind in "fiuV"):
        raise TypeError(f"{name} must be a real number or an array of them, got {value!r}")
    concrete = _concrete(value)
    if concrete is not None:
        concrete = concrete.astype(np.float64)
        if not np.all(np.isfinite(concrete)):
            raise ValueError(f"{name} must be finite, got {value}")
        if np.any(concrete < lower) or (strict and np.any(concrete == lower)):
            sign = ">" if strict else ">="
            raise ValueError(f"{name} must be {sign} {lower:g}, got {value}")
    if isinstance(value, float | int):
        return value
    array = jnp.asarray(value)
    return array.astype(jnp.result_type(1.0)) if kind in "iu" else array


def together(*values: float | int | Array) -> tuple[Float[Array, "*s"], ...]:
    """The values in one float dtype, broadcast against each other."""
    dtype = jnp.result_type(1.0, *values)
    return tuple(jnp.broadcast_arrays(*(jnp.asarray(v, dtype) for v in values)))


def skew_matrix(name: str, value: Any) -> Float[Array, "n n"]:
    """A skew-symmetric matrix, from an array or from an operator that has `as_matrix()`."""
    matrix = value.as_matrix() if hasattr(value, "as_matrix") else value
    matrix = jnp.asarray(real(name, matrix))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} must be a square matrix, got shape {matrix.shape}")
    concrete = _concrete(matrix)
    if concrete is not None:
        defect, size = np.max(np.abs(concrete + concrete.T)), np.max(np.abs(concrete))
        if defect > 8 * np.finfo(concrete.dtype).eps * size:
            raise ValueError(
                f"{name} must be skew-symmetric, but max|{name} + {name}^T| = {defect:.3g}; "
                f"({name} - {name}^T)/2 is its skew part"
            )
    return matrix


def state(name: str, value: ArrayLike, size: int) -> Float[Array, " n"]:
    """A finite vector of the given size."""
    vector = jnp.asarray(real(name, value))
    if vector.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {vector.shape}")
    return vector
