"""The members of an ensemble: where each starts, and its parameters, chunk by chunk."""

import hashlib
import inspect
import keyword
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from .._cell import AbstractCell
from .._fingerprint import fingerprint
from .._simulate.checks import check_x0, is_count
from .layout import RESERVED

Parameters = dict[str, Any]
"""Of each member, by name: arrays that lead with the members."""

# Rows of x0 that are looked at, or hashed, at a time.
BLOCK = 2**16


class Members:
    """`count` members; `take(numbers)` gives the initial states and the parameters of some."""

    def __init__(self, cell: Any, x0: Any, parameters: Any, count: Any, key: Any):
        self.parameters = _checked_parameters(cell, parameters)
        self.make = cell
        if count is not None and (not is_count(count) or count < 1):
            raise ValueError(f"`trajectories` must be an integer >= 1 or None, got {count!r}.")
        counts = {f'parameters["{k}"]': len(v) for k, v in self.parameters.items()}
        if count is not None:
            counts["trajectories"] = int(count)
        if not callable(x0):
            if key is not None:
                raise ValueError("`key` is for an `x0` that is a function; leave it out.")
            x0 = _checked_states(x0)
            counts["x0"] = len(x0)
        elif not _is_key(key):
            raise TypeError(
                "`key` must be a PRNG key such as jax.random.key(0), from which a function `x0` "
                f"makes the initial states; got {key!r}."
            )
        if not counts:
            raise ValueError(
                "`trajectories` must say how many there are, as `x0` is a function and there are "
                "no `parameters`."
            )
        if len(set(counts.values())) > 1:
            found = ", ".join(f"`{name}` {many}" for name, many in counts.items())
            raise ValueError(f"The number of trajectories must be the same in all: {found}.")
        self.count = next(iter(counts.values()))
        if self.count == 0:
            raise ValueError("`x0` is an empty batch; give at least one state.")
        self.key: Any = _typed(key) if callable(x0) else None
        self.x0 = x0
        self.first = self._cell(0)
        self.dtype: Any = None
        example, _ = self.take(np.zeros(1, int))
        if callable(x0) and example.shape[1:] != (self.first.size,):
            raise ValueError(
                f"`x0` must return one state ({self.first.size},), got {example.shape[1:]}."
            )
        self.dtype = np.dtype(check_x0(self.first, example).dtype)
        if not callable(x0):
            for start in range(0, self.count, BLOCK):
                check_x0(self.first, x0[start : start + BLOCK])

    def _cell(self, number: int) -> AbstractCell:
        if isinstance(self.make, AbstractCell):
            return self.make
        cell = made(
            self.make, {name: jnp.asarray(v[number]) for name, v in self.parameters.items()}
        )
        if not isinstance(cell, AbstractCell):
            raise TypeError(
                "`cell` must be a cell, or a function of the parameters that returns a "
                f"jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell; it returned {cell!r}."
            )
        return cell

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, Parameters]:
        parameters = {name: value[numbers] for name, value in self.parameters.items()}
        if callable(self.x0):
            x0 = _starts(self.x0, self.make, parameters, self.key, jnp.asarray(numbers))
            x0 = np.asarray(x0)
        else:
            x0 = self.x0[numbers]
        return x0 if self.dtype is None else x0.astype(self.dtype), parameters

    def task(self) -> dict[str, Any]:
        """What the numbers of the members depend on, by name."""
        ends = [eqx.partition(self._cell(i), eqx.is_array) for i in (0, self.count - 1)]
        parts = {"cell": fingerprint(ends), "trajectories": self.count}
        parts |= {f"parameters[{name!r}]": _digest(v) for name, v in self.parameters.items()}
        if not callable(self.x0):
            return parts | {"x0": _digest(self.x0)}
        few = self.take(np.unique(np.linspace(0, self.count - 1, 16).astype(int)))[0]
        return parts | {"x0": _digest(few), "key": _digest(np.asarray(jr.key_data(self.key)))}


@eqx.filter_jit
def _starts(x0: Callable, make: Any, parameters: Parameters, key: Array, numbers: Array) -> Array:
    def one(number, parameters):
        cell = made(make, parameters)
        try:
            return jnp.asarray(x0(cell, jr.fold_in(key, number)))
        except Exception as error:
            error.add_note("This was `x0`, which must be a function of (cell, key) for jax.vmap.")
            raise

    return jax.vmap(one)(numbers, parameters)


def made(make: Any, parameters: Parameters) -> AbstractCell:
    """The cell of all, or that of some parameters."""
    if isinstance(make, AbstractCell):
        return make
    try:
        return make(**parameters)
    except Exception as error:
        error.add_note("This was `cell`, which must be a function that jax.vmap can be applied to.")
        raise


def _is_key(key: Any) -> bool:
    if not isinstance(key, jax.Array):
        return False
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return (typed and key.ndim == 0) or (key.dtype == jnp.uint32 and key.shape == (2,))


def _typed(key: Any) -> Array:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jr.wrap_key_data(key)


def _checked_states(x0: Any) -> np.ndarray:
    try:
        x0 = np.asarray(x0)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`x0` must be an array (b, n), or a function of (cell, key); got {x0!r}."
        ) from error
    if x0.dtype == bool or not np.issubdtype(x0.dtype, np.number):
        raise TypeError(f"`x0` must hold real numbers such as floats, got dtype {x0.dtype}.")
    if x0.ndim != 2:
        raise ValueError(f"`x0` must have shape (b, n), a row for each trajectory; got {x0.shape}.")
    return x0


def _checked_parameters(cell: Any, parameters: Any) -> dict[str, np.ndarray]:
    if isinstance(cell, AbstractCell):
        if parameters is not None:
            raise ValueError(
                "`parameters` are those of a `cell` that is a function, such as "
                "lambda scale: jaxdyn.PoissonCell(...), and it is a cell; leave them out."
            )
        return {}
    if not callable(cell) or isinstance(cell, type):
        raise TypeError(
            "`cell` must be a jaxdyn.PoissonCell or jaxdyn.AntisymmetricCell, or a function of "
            f"the parameters that returns one, got {cell!r}."
        )
    if not isinstance(parameters, Mapping) or not parameters:
        raise TypeError(
            '`parameters` must be a dict of arrays, such as {"scale": scales}, with one row for '
            f"each trajectory, as `cell` is a function of them; got {parameters!r}."
        )
    checked = {}
    for name, value in parameters.items():
        if not is_name(name) or name in RESERVED:
            raise ValueError(
                f"`parameters` has the name {name!r}, which must be one that an argument of `cell` "
                f"can have, and none of {', '.join(RESERVED)}."
            )
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f'`parameters["{name}"]` must be an array, got {value!r}.') from error
        if array.dtype != bool and not np.issubdtype(array.dtype, np.number):
            raise TypeError(
                f'`parameters["{name}"]` must hold numbers, got dtype {array.dtype}; give seeds '
                "for keys, and make the keys in `cell`."
            )
        if array.ndim == 0:
            raise ValueError(
                f'`parameters["{name}"]` must have one row for each trajectory, got a number.'
            )
        checked[name] = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        if array.dtype.kind in "iu" and np.any(checked[name] != array):
            raise ValueError(
                f'`parameters["{name}"]` holds integers that {checked[name].dtype} cannot; give '
                "smaller ones, or allow 64 bits by jax.config.update('jax_enable_x64', True)."
            )
    try:
        inspect.signature(cell).bind(**checked)
    except TypeError as error:
        raise TypeError(
            f"`cell` must be a function of {', '.join(checked)}, the `parameters`: {error}."
        ) from error
    except ValueError:  # of a function written in C nothing is known
        pass
    return checked


def is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    for start in range(0, len(array), BLOCK):
        digest.update(np.ascontiguousarray(array[start : start + BLOCK]).tobytes())
    return digest.hexdigest()
