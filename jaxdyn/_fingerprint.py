"""What tells one piece of work from another, so that only the same one is taken up again."""

import functools
import hashlib
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(*parts: Any) -> str:
    """A digest of PyTrees: of arrays by their bytes, of modules by their parts."""
    digest = hashlib.sha256()
    for part in parts:
        leaves, structure = jax.tree.flatten(part)
        digest.update(_placeless(structure))
        for leaf in leaves:
            if eqx.is_array_like(leaf) and not isinstance(leaf, bool | int | float | complex):
                array = _values(leaf)
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
            elif callable(leaf):
                digest.update(_code(leaf))
            else:
                digest.update(_placeless(leaf))
        digest.update(b"|")
    return digest.hexdigest()


def _values(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _placeless(thing: Any) -> bytes:
    """What it is called, without where it lies in memory: that differs from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing)).encode()


def _code(fn: Any, depth: int = 4) -> bytes:
    """What a function does, as far as can be seen: its code, and the values that come with it."""
    if isinstance(fn, functools.partial):
        parts = fn.args, fn.keywords
        return _code(fn.func, depth) + fingerprint(parts).encode()
    code = getattr(fn, "__code__", None)
    if code is None or depth == 0:
        return _placeless(fn)
    cells = [cell.cell_contents for cell in fn.__closure__ or () if _is_filled(cell)]
    values = [*cells, *(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    called = [_code(value, depth - 1) for value in values if hasattr(value, "__code__")]
    held = [value for value in values if not hasattr(value, "__code__")]
    return b"|".join([*_compiled(code), *called, fingerprint(held).encode()])


def _compiled(code: Any) -> list[bytes]:
    inner = [c for c in code.co_consts if hasattr(c, "co_code")]
    # A set has another order in every process.
    outer = [
        sorted(map(repr, c)) if isinstance(c, frozenset) else c
        for c in code.co_consts
        if not hasattr(c, "co_code")
    ]
    own = [code.co_code, _placeless(outer), _placeless(code.co_names)]
    return own + [part for c in inner for part in _compiled(c)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
