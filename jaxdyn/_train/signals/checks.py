"""Checks that the makers of signals share."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._types import is_inside_jit, is_traced


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> float:
    """`value` as a finite float, > above, >= least and <= most."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        what = "an array" if hasattr(value, "shape") else repr(value)
        raise TypeError(f"`{name}` must be a single real number, got {what}; give float({name}).")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"`{name}` must be finite, got {value!r}.")
    if not (result > above and least <= result <= most):
        bounds = [f"> {above:g}"] if above > -math.inf else []
        bounds += [f">= {least:g}"] if least > -math.inf else []
        bounds += [f"<= {most:g}"] if most < math.inf else []
        raise ValueError(f"`{name}` must be {' and '.join(bounds)}, got {value!r}.")
    return result


def count(name: str, value: Any, least: int, most: float | int = math.inf) -> int:
    """`value` as an int, >= least and <= most."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if not least <= int(value) <= most:
        upper = f" and <= {most:g}" if most < math.inf else ""
        raise ValueError(f"`{name}` must be >= {least}{upper}, got {value!r}.")
    return int(value)


def line(name: str, value: Any) -> str:
    """`value`, one line of printable text without blanks around it: what a file can keep."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be text, got {value!r}.")
    if not value or value != value.strip() or not value.isprintable():
        raise ValueError(
            f"`{name}` must be one line of text, not empty and without blanks around it, "
            f"got {value!r}."
        )
    return value


def outside_jit() -> None:
    if is_inside_jit():
        raise ValueError(
            "Signals are arrays on the host, which cannot be computed inside jit; make them "
            "outside and hand `values` in."
        )


def numpy_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of whatever type."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` is a masked array; give `{name}=a.filled(0)` and "
            "`mask=~numpy.ma.getmaskarray(a)`."
        )
    if is_traced(value):
        raise TypeError(
            f"`{name}` has no value yet (under jit, grad or vmap); make signals outside of them."
        )
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"`{name}` must be an array of real numbers with rows of equal length, got "
        f"{type(value).__name__}."
    )


def real_array(name: str, value: Any) -> np.ndarray:
    """A copy of `value` in float32 if it is of that type, else in float64."""
    array = numpy_array(name, value)
    if not (jnp.issubdtype(array.dtype, np.floating) or jnp.issubdtype(array.dtype, np.integer)):
        raise TypeError(
            f"`{name}` must hold real numbers, got {_kind(array)}; convert them to floats first."
        )
    single = array.dtype.kind == "f" and array.dtype.itemsize == 4
    with np.errstate(over="ignore"):  # long doubles beyond float64: refused as infinite
        return array.astype(np.float32 if single else np.float64)


def _kind(array: np.ndarray) -> str:
    kinds = {"b": "truth values", "c": "complex numbers", "O": "objects", "U": "text", "S": "bytes"}
    return kinds.get(array.dtype.kind, f"type {array.dtype}")


def increasing(name: str, value: Any, length: int | None = None) -> Float[np.ndarray, " t"]:
    """`value` as strictly increasing finite times."""
    ts = real_array(name, value).astype(np.float64)
    if ts.ndim != 1 or (length is not None and ts.shape != (length,)):
        wanted = "(t,)" if length is None else f"({length},), one time per sample"
        raise ValueError(f"`{name}` must have shape {wanted}; got {ts.shape}.")
    if ts.size < 2:
        raise ValueError(f"`{name}` must hold at least 2 times, got {ts.size}.")
    if not np.all(np.isfinite(ts)):
        at = int(np.flatnonzero(~np.isfinite(ts))[0])
        raise ValueError(f"`{name}` must be finite, got {ts[at]} at sample {at}; drop it.")
    with np.errstate(over="ignore"):
        steps = np.diff(ts)
        span = ts[-1] - ts[0]
    if np.any(steps <= 0):
        at = int(np.flatnonzero(steps <= 0)[0])
        raise ValueError(
            f"`{name}` must be strictly increasing, got {ts[at]} and then {ts[at + 1]} at sample "
            f"{at + 1}; sort the samples by time and keep one of equal times."
        )
    if not np.isfinite(span):
        raise ValueError(f"`{name}` must span a finite time; use a larger unit of time.")
    return ts


def uniform(n_samples: int, dt: Any) -> Float[np.ndarray, " t"]:
    """The times 0, dt, 2 dt, ..."""
    dt = number("dt", dt, above=0.0)
    if not math.isfinite(dt * (n_samples - 1)):
        raise ValueError(f"`dt` must keep the times finite, got {dt!r}; use a larger unit of time.")
    return np.arange(n_samples, dtype=np.float64) * dt


def random_key(value: Any) -> Any:
    """`value` if it is one random key, typed or of the old kind, that has a value."""
    if is_traced(value):
        raise TypeError("`key` has no value yet (under jit, grad or vmap); make signals outside.")
    if isinstance(value, jax.Array):
        typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.shape == () if typed else value.dtype == jnp.uint32 and value.ndim == 1:
            return value
    what = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
    raise TypeError(f"`key` must be one random key such as jax.random.key(0), got {what}.")


def names(value: Any, size: int) -> tuple[str, ...]:
    """`value` as one name per channel; None gives x1, x2, ..."""
    if value is None:
        return tuple(f"x{i + 1}" for i in range(size))
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"`channels` must be a list of names, one per channel, got {value!r}.")
    result = tuple(line("channels", v) for v in value)
    if len(result) != size:
        raise ValueError(f"`channels` must hold {size} names, one per channel; got {len(result)}.")
    if len(set(result)) < size:
        twice = next(v for v in result if result.count(v) > 1)
        raise ValueError(f"`channels` must differ from each other, got {twice!r} more than once.")
    return result
