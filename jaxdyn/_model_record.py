"""Modules as JSON records and a list of arrays, and back: only of classes in a white list."""

import dataclasses
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from . import _activation, _cell, _skew, _solver
from ._activation import AbstractActivation
from ._cell import AbstractCell, EnergyShell
from ._skew import (
    AbstractSkewOperator,
    BandedSkew,
    BipartiteSkew,
    BlockSkew,
    CirculantSkew,
    FormedSkew,
    LowRankSkew,
)
from ._skew.coloring import Coloring
from ._skew.graph import Pattern
from ._skew.sparse import make_pattern
from ._solver import AbstractCellSolver
from ._types import is_traced

NO_LIKE: Any = object()
# A record takes at most three levels of JSON, whose parser goes to about a thousand.
_DEEPEST = 64
# To trace an operator of more units forms index arrays, which may be far larger than its file...
_LARGEST_FORMED = 1024
# ... unless it is of these.
_FORM_NOTHING = (BandedSkew, BipartiteSkew, BlockSkew, CirculantSkew, FormedSkew, LowRankSkew)
_REAL = (jnp.bfloat16, "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_DTYPES = {str(np.dtype(kind)): np.dtype(kind) for kind in ("?", *_REAL, "c8", "c16")}
# Version 1.0 of numpy's format as numpy writes a plain array: no fields, no objects.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([^']{1,8})', 'fortran_order': False, "
    rb"'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_CLASSES: dict[str, type] = {}


class Damaged(Exception):
    """Why a file cannot be one that `save_module` wrote."""


def register(*classes: type) -> None:
    """Lets dataclasses of ours, such as modules, be saved and loaded, each by its name.

    **Raises:** ValueError when another class has that name.
    """
    for cls in classes:
        if _CLASSES.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(
                f"`classes` holds a second {cls.__name__}, besides that of "
                f"{_CLASSES[cls.__name__].__module__}; rename it."
            )


def encode(value: Any, where: str, arrays: list[np.ndarray], depth: int = 0) -> Any:
    """`value` as JSON; its arrays are appended to `arrays`. `where` names it in errors."""

    def inner(value: Any, step: str) -> Any:
        return encode(value, where + step, arrays, depth + 1)

    cls = type(value)
    if depth > _DEEPEST:
        raise ValueError(f"`module` is nested more than {_DEEPEST} deep at {where}; flatten it.")
    if value is None or cls in (bool, int, str) or (cls is float and math.isfinite(value)):
        return value
    if cls is float:
        return {"float": struct.pack(">d", value).hex()}
    if cls is complex:
        return {"complex": [inner(value.real, ".real"), inner(value.imag, ".imag")]}
    if cls is slice:
        return {"slice": [inner(v, "") for v in (value.start, value.stop, value.step)]}
    if cls is tuple or cls is list:
        return {cls.__name__: [inner(v, f"[{i}]") for i, v in enumerate(value)]}
    if cls is dict:
        return {"dict": [[inner(k, ".keys()"), inner(v, f"[{k!r}]")] for k, v in value.items()]}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encode_array(value, where, arrays)
    if _CLASSES.get(cls.__name__) is cls:
        fields = {name: inner(getattr(value, name), f".{name}") for name in _fields(cls)}
        return {"class": cls.__name__, "fields": fields, "runs": _runs(value)}
    leaves = []
    for path, leaf in jtu.tree_flatten_with_path(value)[0]:
        step = jtu.keystr(path)
        leaves.append([step, inner(leaf, step) if _stored(leaf) else None])
    return {"foreign": _name(value), "leaves": leaves}


def _encode_array(value: Any, where: str, arrays: list[np.ndarray]) -> Any:
    if is_traced(value):
        raise ValueError(
            f"`module` has no values yet at {where}: call save_module outside of jit, grad and "
            "vmap."
        )
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"`module` holds a typed random key at {where}, which no file can hold; keep "
            "jax.random.key_data(key) instead."
        )
    name, cls = str(value.dtype), type(value)
    if name not in _DTYPES or (isinstance(value, np.ndarray) and cls is not np.ndarray):
        raise TypeError(
            f"`module` holds a {cls.__name__} of dtype {name} at {where}; only plain arrays of "
            "booleans and numbers can be saved: convert it."
        )
    arrays.append(np.asarray(value, order="C"))
    kind = "jax" if isinstance(value, jax.Array) else "numpy" if cls is np.ndarray else "scalar"
    return {"array": len(arrays) - 1, "dtype": name, "shape": list(value.shape), "as": kind}


class Reader:
    """Builds what a record describes, taking arrays from the payload one after the other."""

    def __init__(self, path: str, payload: memoryview):
        self.path = path
        self.payload = payload
        self.at = 0
        self.count = 0

    def finish(self) -> None:
        """Raises when something is left of the payload."""
        if self.at != len(self.payload):
            raise Damaged(f"{len(self.payload) - self.at} bytes of its payload are of no array")

    def value(self, record: Any, where: str, like: Any, depth: int = 0) -> Any:
        """What `record` describes; `like` is its counterpart, or NO_LIKE."""

        def inner(record: Any, step: str, like: Any = NO_LIKE) -> Any:
            return self.value(record, where + step, like, depth + 1)

        if depth > _DEEPEST:
            raise Damaged(f"it is nested more than {_DEEPEST} deep")
        match record:
            case None | bool() | int() | float() | str():
                return record
            case {"float": str(digits)} if re.fullmatch("[0-9a-f]{16}", digits):
                return struct.unpack(">d", bytes.fromhex(digits))[0]
            case {"complex": [real, imag]}:
                parts = inner(real, ".real"), inner(imag, ".imag")
                if all(type(part) is float for part in parts):
                    return complex(*parts)
            case {"slice": [*parts]} if len(parts) == 3:
                if all(part is None or type(part) is int for part in parts):
                    return slice(*parts)
            case {"tuple": [*items]}:
                likes = self._likes(like, tuple, len(items), where)
                return tuple(inner(r, f"[{i}]", likes[i]) for i, r in enumerate(items))
            case {"list": [*items]}:
                likes = self._likes(like, list, len(items), where)
                return [inner(r, f"[{i}]", likes[i]) for i, r in enumerate(items)]
            case {"dict": [*items]}:
                return self._dict(items, where, like, inner)
            case {"array": int(i), "dtype": str(dtype), "shape": [*shape], "as": str(kind)}:
                return self._array(i, dtype, tuple(shape), kind, where)
            case {"class": str(name), "fields": dict(fields), "runs": bool(runs)}:
                return self._object(name, fields, runs, where, like, inner)
            case {"foreign": str(name), "leaves": [*leaves]}:
                return self._foreign(name, leaves, where, like, inner)
        raise Damaged(f"its record of {where} makes no sense")

    def _likes(self, like: Any, cls: type, length: int, where: str) -> list[Any]:
        if like is NO_LIKE:
            return [NO_LIKE] * length
        if type(like) is not cls or len(like) != length:
            raise self._unlike(where, f"a {cls.__name__} of {length}", like)
        return list(like)

    def _dict(self, items: list[Any], where: str, like: Any, inner: Callable[..., Any]) -> Any:
        if like is not NO_LIKE and (type(like) is not dict or len(like) != len(items)):
            raise self._unlike(where, f"a dict of {len(items)}", like)
        out = {}
        for item in items:
            match item:
                case [key, value]:
                    key = inner(key, ".keys()")
                case _:
                    raise Damaged(f"its record of {where} makes no sense")
            try:
                hash(key)
                known = like is NO_LIKE or key in like
            except TypeError as error:
                raise Damaged(f"{where} has a {type(key).__name__} for a key") from error
            if not known:
                raise self._unlike(where, f"a dict with the key {key!r}", like)
            out[key] = inner(value, f"[{key!r}]", NO_LIKE if like is NO_LIKE else like[key])
        return out

    def _array(self, i: int, dtype: str, shape: tuple[Any, ...], kind: str, where: str) -> Any:
        kept = _DTYPES.get(dtype)
        if (
            kept is None
            or i != self.count
            or kind not in ("jax", "numpy", "scalar")
            or len(shape) > 32
            or not all(type(d) is int and 0 <= d < 2**48 for d in shape)
        ):
            raise Damaged(f"its record of {where} makes no sense")
        if kind == "jax" and jax.dtypes.canonicalize_dtype(kept) != kept:
            raise ValueError(
                f"{self.path} holds {dtype} numbers at {where}, and 64-bit types are off; turn "
                'them on: jax.config.update("jax_enable_x64", True).'
            )
        head = _NPY.match(self.payload, self.at)
        if (
            head is None
            or int.from_bytes(head[1], "little") != head.end() - head.start() - 10
            or head[2] != kept.str.encode()
            or head[3] != repr(shape)[1:-1].encode()
        ):
            raise Damaged(f"its payload has no {dtype} array of shape {shape} for {where}")
        end = head.end() + math.prod(shape) * kept.itemsize
        if end > len(self.payload):
            raise Damaged(f"its payload ends within the array for {where}")
        # Within the file: no more memory is taken than the file itself takes.
        flat = np.frombuffer(self.payload[head.end() : end], np.uint8)
        if dtype == "bool" and (flat > 1).any():
            raise Damaged(f"{where} holds bytes that are no bool")
        self.at, self.count = end, self.count + 1
        try:
            array = flat.view(kept).reshape(shape)
            if kind == "jax":
                return jnp.array(array)
        except (ValueError, OverflowError) as error:
            raise Damaged(f"{where} has an impossible shape, {shape}") from error
        return array.copy() if kind == "numpy" else array[()]

    def _object(
        self,
        name: str,
        fields: dict[str, Any],
        runs: bool,
        where: str,
        like: Any,
        inner: Callable[..., Any],
    ) -> Any:
        cls = _CLASSES.get(name)
        if cls is None:
            raise ValueError(
                f"{self.path} holds a {name[:80]!r} at {where}, a class that this jaxdyn does not "
                "have; upgrade it: pip install --upgrade jaxdyn."
            )
        if set(fields) != set(_fields(cls)):
            raise Damaged(f"{where} has not the fields of a {name}")
        if like is not NO_LIKE and type(like) is not cls:
            raise self._unlike(where, f"a {name}", like)
        likes = (NO_LIKE if like is NO_LIKE else getattr(like, field) for field in fields)
        values = {
            field: inner(record, f".{field}", other)
            for (field, record), other in zip(fields.items(), likes, strict=True)
        }
        try:
            made = _HOLDERS[cls][1](values) if cls in _HOLDERS else _restored(cls, values)
        except Exception as error:
            raise Damaged(f"{where} cannot be a {name} ({error})") from error
        if runs and not _runs(made):
            raise Damaged(f"the parts of {where} do not fit together")
        return made

    def _foreign(
        self, name: str, leaves: list[Any], where: str, like: Any, inner: Callable[..., Any]
    ) -> Any:
        if like is NO_LIKE:
            raise ValueError(
                f"{self.path} needs `like`: {where} is {name[:80]!r}, which is not jaxdyn's own "
                "and is in no file; pass like=, a module built as the saved one was."
            )
        given, structure = jtu.tree_flatten_with_path(like)
        steps = [jtu.keystr(path) for path, _ in given]
        if not all(isinstance(entry, list) and len(entry) == 2 for entry in leaves):
            raise Damaged(f"its record of {where} makes no sense")
        if [step for step, _ in leaves] != steps:
            raise self._unlike(where, f"something with {len(leaves)} leaves", like)
        out = []
        for (step, record), (_, leaf) in zip(leaves, given, strict=True):
            value = leaf if record is None else inner(record, step)
            if _stored(leaf) if record is None else _sort(value) != _sort(leaf):
                saved = "something else" if record is None else _sort(value)
                raise self._unlike(where + step, saved, leaf)
            out.append(value)
        return jtu.tree_unflatten(structure, out)

    def _unlike(self, where: str, saved: str, like: Any) -> ValueError:
        return ValueError(
            f"`like` does not fit {self.path}: {where} is {saved} there and {_sort(like)} in "
            "`like`; build `like` as the saved module was built."
        )


def _fields(cls: type) -> tuple[str, ...]:
    return _HOLDERS[cls][0] if cls in _HOLDERS else tuple(f.name for f in dataclasses.fields(cls))


def _restored(cls: type, values: dict[str, Any]) -> Any:
    """An instance with these fields; not by its `__init__`, which may draw random numbers."""
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    for base in cls.__mro__:
        if "__check_init__" in vars(base):
            base.__check_init__(made)
    return made


def _coloring(values: dict[str, Any]) -> Coloring:
    for units in values["classes"]:
        if not isinstance(units, slice) and not np.issubdtype(units.dtype, np.integer):
            raise TypeError("a class must be a slice or an array of integers")
    return Coloring(values["classes"])


def _runs(value: Any) -> bool:
    """Whether a cell or an operator can be applied; one that is stacked, as by vmap, cannot."""
    if not isinstance(value, AbstractCell | AbstractSkewOperator):
        return True
    try:
        operator = value.operator if isinstance(value, AbstractCell) else value
        n, dtype = value.size, operator.dtype
        if n > _LARGEST_FORMED and not isinstance(operator, _FORM_NOTHING):
            if operator is value:
                return True
            # Another operator of this size, to see the rest of the cell by.
            thin = eqx.filter_eval_shape(lambda: LowRankSkew(*(jnp.zeros((n, 1), dtype),) * 2))
            value = eqx.tree_at(lambda cell: cell.operator, value, thin)
        x = jax.ShapeDtypeStruct((n,), dtype)
        # A file must not load or fail by how strict JAX happens to be.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            if isinstance(value, AbstractSkewOperator):
                out = eqx.filter_eval_shape(lambda operator, x: operator.mv(x), value, x)
            else:
                U, t = value.input_matrix, jax.ShapeDtypeStruct((), dtype)
                u = None if U is None else jax.ShapeDtypeStruct((U.shape[1],), U.dtype)
                out = eqx.filter_eval_shape(lambda cell, *at: cell(*at), value, t, x, u)
        return out.shape == x.shape
    except Exception:
        return False


def _stored(leaf: Any) -> bool:
    """Whether a leaf of something foreign is written: arrays and Python numbers are."""
    arrays = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
    return isinstance(leaf, arrays) or type(leaf) in (bool, int, float, complex)


def _sort(leaf: Any) -> str:
    """What must agree between a leaf in the file and its counterpart."""
    cls = type(leaf).__name__
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return f"a {cls}"
    cls = "JAX array" if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else cls
    return f"a {cls} {leaf.dtype}{list(leaf.shape)}"


def _name(value: Any) -> str:
    """What to call something that is not ours."""
    named = value.func if isinstance(value, jtu.Partial) else value
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}.{named.__qualname__}"


# Static fields hold index arrays in these: the names of what is written, and how to build one.
_HOLDERS: dict[type, tuple[tuple[str, ...], Callable[[dict[str, Any]], Any]]] = {
    Pattern: (("size", "rows", "cols"), lambda v: make_pattern(v["rows"], v["cols"], v["size"])),
    Coloring: (("classes",), _coloring),
}
_KINDS = (AbstractActivation, AbstractSkewOperator, AbstractCell, AbstractCellSolver)
register(FormedSkew, EnergyShell, *_HOLDERS)
for _room in (_activation, _cell, _skew, _solver):
    for _cls in vars(_room).values():
        if isinstance(_cls, type) and issubclass(_cls, _KINDS):
            if not _cls.__name__.startswith("Abstract"):
                register(_cls)
