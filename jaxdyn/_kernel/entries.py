"""Arrays taken apart: what the units of one trajectory are, each a vector over the lanes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer


class Refused(ValueError):
    """A step that cannot be taken apart."""


def as_numbers(leaves: Sequence[Any]) -> tuple[list[Any], Callable[[Sequence[Any]], list[Any]]]:
    """Arrays with bools made integers, as memory takes them; and what makes them bools again."""
    bools = [leaf.dtype == bool for leaf in leaves]

    def restored(numbers: Sequence[Any]) -> list[Any]:
        return [v != 0 if was else v for v, was in zip(numbers, bools, strict=True)]

    numbers = [v.astype(np.int32) if was else v for v, was in zip(leaves, bools, strict=True)]
    return numbers, restored


class Entries(NamedTuple):
    """An array of one trajectory as the row-major list of its entries.

    An entry is a NumPy scalar when it is known while the program is traced, else a scalar or a
    vector over the lanes, or a `Loaded` one.
    """

    shape: tuple[int, ...]
    items: list[Any]

    def known(self) -> bool:
        return all(isinstance(item, np.generic) for item in self.items)

    def value(self, dtype: Any) -> np.ndarray:
        """The array, of entries that are known."""
        return np.array(self.items, dtype).reshape(self.shape)

    def numbers(self, first: int = 0) -> np.ndarray:
        """The array with the number of each entry in its place."""
        return first + np.arange(len(self.items), dtype=np.int32).reshape(self.shape)

    def at(self, numbers: np.ndarray) -> "Entries":
        """The array whose entries are those of these numbers."""
        return Entries(numbers.shape, [self.items[i] for i in numbers.ravel()])


class Loaded(NamedTuple):
    """A constant that is read anew from memory wherever it is used, and so takes no register."""

    read: Callable[[], Any]


def known(value: Any) -> Entries:
    """A concrete array as entries."""
    value = np.asarray(value)
    return Entries(value.shape, [value.dtype.type(v) for v in value.ravel()])


class Lanes:
    """Emits operations on entries, in a kernel of `tile` lanes, and counts them."""

    def __init__(self, tile: int, most: int, refuse: Callable[[int], Exception]):
        self.tile, self.most, self.refuse = tile, most, refuse
        self.count = 0
        self._vectors: dict[Any, tuple[Any, Any]] = {}

    def emit(self, fn: Callable, *items: Any) -> Any:
        """`fn` of entries, made vectors where one of them is a vector."""
        self.count += 1
        if self.count > self.most:
            raise self.refuse(self.most)
        items = tuple(item.read() if isinstance(item, Loaded) else item for item in items)
        if any(np.ndim(item) for item in items):
            items = tuple(self.vector(item) for item in items)
        out = fn(*items)
        return out if isinstance(out, Tracer) else np.asarray(out)[()]

    def vector(self, item: Any) -> Any:
        """`item` in every lane; of one that is used again, the same vector."""
        if isinstance(item, Loaded):
            item = item.read()
        if np.ndim(item):
            return item
        is_known = isinstance(item, np.generic)
        key = (item.dtype, item.tobytes()) if is_known else id(item)
        if key not in self._vectors:
            shape = (self.tile,)
            value: Any = item
            spread = jax.lax.full(shape, value) if is_known else jax.lax.broadcast(item, shape)
            self._vectors[key] = item, spread
        return self._vectors[key][1]

    def add(self, a: Any, b: Any) -> Any:
        if _is(a, 0):
            return b
        return a if _is(b, 0) else self.emit(jax.lax.add_p.bind, a, b)

    def sub(self, a: Any, b: Any) -> Any:
        return a if _is(b, 0) else self.emit(jax.lax.sub_p.bind, a, b)

    def mul(self, a: Any, b: Any) -> Any:
        """The product; that with a known 0 is 0, whatever the other one may become."""
        for one, other in ((a, b), (b, a)):
            if _is(one, 0):
                return one
            if _is(one, 1):
                return other
        return self.emit(jax.lax.mul_p.bind, a, b)

    def conjunction(self, a: Any, b: Any) -> Any:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, np.bool_):
                return other if one else one
        return self.emit(jax.lax.and_p.bind, a, b)

    def disjunction(self, a: Any, b: Any) -> Any:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, np.bool_):
                return one if one else other
        return self.emit(jax.lax.or_p.bind, a, b)

    def select(self, which: Any, *cases: Any) -> Any:
        """The case of that number, a bool or an integer."""
        if isinstance(which, np.generic):
            return cases[int(which)]
        if all(case is cases[0] for case in cases):
            return cases[0]
        return self.emit(jax.lax.select_n_p.bind, which, *cases)

    def convert(self, item: Any, dtype: Any) -> Any:
        if isinstance(item, np.generic):
            return np.dtype(dtype).type(item)
        if isinstance(item, Loaded):
            item = item.read()
        if item.dtype == dtype:
            return item
        return self.emit(lambda v: jax.lax.convert_element_type(v, dtype), item)

    def fold(self, fn: Callable, items: Sequence[Any]) -> Any:
        out = items[0]
        for item in items[1:]:
            out = fn(out, item)
        return out


def _is(item: Any, number: int) -> bool:
    return isinstance(item, np.generic) and item == number
