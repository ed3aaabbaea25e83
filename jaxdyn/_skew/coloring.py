"""Classes of units with no coupling inside a class: hashable, so they can be static fields."""

import functools as ft
from typing import TypeAlias

import numpy as np

IndexClass: TypeAlias = "slice | np.ndarray"


class Coloring:
    """A tuple of index classes that compares and hashes by content.

    A slice has no hash before Python 3.12 and an array never has one; a static field needs it.
    """

    __slots__ = ("_key", "classes")

    def __init__(self, classes: "tuple[slice | np.ndarray, ...]"):
        self.classes = classes
        self._key = tuple(
            (c.start, c.stop, c.step) if isinstance(c, slice) else c.tobytes() for c in classes
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Coloring) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@ft.lru_cache(maxsize=64)
def singletons(n: int) -> tuple[slice, ...]:
    """One class per unit: all that a full graph allows."""
    return tuple(slice(i, i + 1) for i in range(n))


def class_size(c: "slice | np.ndarray", n: int) -> int:
    """How many of `n` units the class holds."""
    return len(range(*c.indices(n))) if isinstance(c, slice) else c.size
