"""The coupling pattern of a sparse skew matrix, and its colouring."""

import functools as ft
from collections import deque

import numpy as np


class Pattern:
    """Positions (row, col), row > col, in row-major order; compares and hashes by content."""

    def __init__(self, size: int, rows: np.ndarray, cols: np.ndarray):
        self.size = size
        self.rows = rows
        self.cols = cols
        self._hash = hash((size, rows.tobytes(), cols.tobytes()))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Pattern)
            and self.size == other.size
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self.cols, other.cols)
        )

    def __hash__(self) -> int:
        return self._hash

    @ft.cached_property
    def colors(self) -> np.ndarray:
        """A colour for each unit, greedily: the better of two orders.

        Breadth first finds two colours whenever two are enough; the most coupled units first
        (Welsh and Powell 1967) is the better order on most other graphs.
        """
        ends = np.concatenate([self.rows, self.cols])
        others = np.concatenate([self.cols, self.rows])[np.argsort(ends, kind="stable")]
        degree = np.bincount(ends, minlength=self.size)
        starts = np.concatenate([[0], np.cumsum(degree)]).tolist()
        neighbours = others.tolist()
        orders = (
            _breadth_first(starts, neighbours),
            np.argsort(-degree, kind="stable").tolist(),
        )
        return min((_greedy(order, starts, neighbours) for order in orders), key=np.max)

    @ft.cached_property
    def classes(self) -> "tuple[slice | np.ndarray, ...]":
        """The units of each colour; a slice where they are equally spaced."""
        order = np.argsort(self.colors, kind="stable").astype(np.int32)
        counts = np.bincount(self.colors)
        return tuple(_as_slice(units) for units in np.split(order, np.cumsum(counts)[:-1]))

    @ft.cached_property
    def product(self) -> "Plan":
        """How to form W x. Entry k is the k-th below the diagonal, entry nnz + k its mirror."""
        return self._plan(slice(None), np.arange(self.size))

    @ft.cached_property
    def class_products(self) -> "tuple[Plan, ...]":
        """How to form W[:, class] g, for each class."""
        place = np.zeros(self.size, np.int64)
        for units in self.classes:
            members = np.arange(self.size)[units]
            place[members] = np.arange(members.size)
        sources = np.concatenate([self.cols, self.rows])
        return tuple(
            self._plan(np.flatnonzero(self.colors[sources] == c), place)
            for c in range(len(self.classes))
        )

    def _plan(self, chosen: "slice | np.ndarray", place: np.ndarray) -> "Plan":
        targets = np.concatenate([self.rows, self.cols])[chosen]
        sources = place[np.concatenate([self.cols, self.rows])[chosen]]
        entries = np.arange(2 * self.rows.size)[chosen]
        order = np.argsort(targets, kind="stable")
        return Plan(self.size, 2 * self.rows.size, targets[order], sources[order], entries[order])


class Plan:
    """y[target] += entry * x[source] for a list of triples that is sorted by target.

    `rounds`, where there is one, does the same by gathers only: round d holds the d-th source and
    entry of every unit, and the entry after the last (a zero) where a unit has no more. In a
    batch that is up to 50 times faster on a CPU than a scatter (512 units, 256 trajectories).
    """

    def __init__(
        self, size: int, zero: int, targets: np.ndarray, sources: np.ndarray, entries: np.ndarray
    ):
        self.targets = targets.astype(np.int32)
        self.sources = sources.astype(np.int32)
        self.entries = entries.astype(np.int32)
        self.rounds: tuple[tuple[np.ndarray, np.ndarray], ...] | None = None
        degree = np.bincount(targets, minlength=size)
        depth = int(degree.max())
        # Beyond: mostly padding, or indices that outgrow the cache, where one scatter wins.
        padded = size * depth
        if depth <= 64 and padded <= 1_000_000 and (depth <= 16 or padded <= 8 * targets.size):
            turn = np.arange(targets.size) - (np.cumsum(degree) - degree)[targets]
            source = np.zeros((depth, size), np.int32)
            entry = np.full((depth, size), zero, np.int32)
            source[turn, targets] = sources
            entry[turn, targets] = entries
            self.rounds = tuple(zip(source, entry, strict=True))


def _breadth_first(starts: list[int], neighbours: list[int]) -> list[int]:
    n = len(starts) - 1
    seen = bytearray(n)
    order = []
    for root in range(n):
        if seen[root]:
            continue
        seen[root] = 1
        queue = deque([root])
        while queue:
            v = queue.popleft()
            order.append(v)
            for u in neighbours[starts[v] : starts[v + 1]]:
                if not seen[u]:
                    seen[u] = 1
                    queue.append(u)
    return order


def _greedy(order: list[int], starts: list[int], neighbours: list[int]) -> np.ndarray:
    colors = [-1] * (len(starts) - 1)
    for v in order:
        taken = {colors[u] for u in neighbours[starts[v] : starts[v + 1]]}
        c = 0
        while c in taken:
            c += 1
        colors[v] = c
    return np.asarray(colors)


def _as_slice(units: np.ndarray) -> "slice | np.ndarray":
    first, last = int(units[0]), int(units[-1])
    if units.size == 1:
        return slice(first, first + 1)
    step = int(units[1]) - first
    if (np.diff(units) == step).all():
        return slice(first, last + 1, step)
    return units
