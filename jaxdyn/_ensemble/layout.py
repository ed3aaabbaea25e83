"""What a sweep results in: variables and coordinates, as they lie in memory or in a store."""

import dataclasses
from typing import Any, Protocol

import numpy as np

# Of a trajectory.
PENDING, DONE, DIVERGED, FAILED = range(4)
MEANINGS = ("pending", "done", "diverged", "failed")
# Attributes that say of a store that it is one.
KEPT_BY_STORES = ("made_by", "task")
RESERVED = ("member", "status", "time", "unit")


def empty(dtype: np.dtype) -> Any:
    """What stands where nothing has been written."""
    return dtype.type(np.nan if np.issubdtype(dtype, np.inexact) else 0)


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array that leads with the members: `shape` and `dims` are those of one member's part."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Of one member."""
        return int(np.prod(self.shape, dtype=int)) * self.dtype.itemsize

    @property
    def empty(self) -> Any:
        return empty(self.dtype)


STATUS = Variable(
    "status",
    (),
    np.dtype("int8"),
    (),
    {
        "long_name": "what became of the trajectory",
        "flag_values": list(range(len(MEANINGS))),
        "flag_meanings": " ".join(MEANINGS),
    },
)


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """Known before anything is computed."""

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """`batch` members in chunks of `chunk`; `variables`, STATUS among them; what every number in
    them depends on is in `task`, by name, as JSON takes it."""

    batch: int
    chunk: int
    variables: tuple[Variable, ...]
    coordinates: dict[str, Coordinate]
    attributes: dict[str, Any]
    task: dict[str, Any]

    @property
    def chunks(self) -> int:
        return -(-self.batch // self.chunk)

    def members(self, number: int) -> slice:
        """Of a chunk."""
        return slice(number * self.chunk, min(self.batch, (number + 1) * self.chunk))

    @property
    def bytes(self) -> int:
        """What all takes, once it is there, the last chunk filled up."""
        results = self.chunks * self.chunk * sum(each.bytes for each in self.variables)
        return results + sum(each.values.nbytes for each in self.coordinates.values())

    @property
    def auxiliary(self) -> list[str]:
        """Coordinates that do not give their dimension its labels."""
        return [name for name, each in self.coordinates.items() if each.dims != (name,)]


class Ledger(Protocol):
    """Where results go."""

    def has(self, number: int) -> bool:
        """Whether a chunk is there already."""
        ...

    def write(self, number: int, values: dict[str, np.ndarray]) -> None:
        """Those of `variables` that are in `values`, of the members of a chunk; its status comes
        last."""
        ...

    def read(self) -> dict[str, Any]:
        """All arrays, by name."""
        ...

    def close(self) -> None: ...


class Memory:
    """Results as NumPy arrays."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.arrays = {
            each.name: np.full((layout.batch, *each.shape), each.empty, each.dtype)
            for each in layout.variables
        }

    def has(self, number: int) -> bool:
        return False

    def write(self, number: int, values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            self.arrays[name][self.layout.members(number)] = value

    def read(self) -> dict[str, Any]:
        return self.arrays

    def close(self) -> None:
        pass
