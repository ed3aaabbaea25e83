"""What the kernel does with one tile of trajectories."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .entries import Entries, Lanes, Loaded, Refused
from .scalarise import scalarised

# Shared constants of up to so many bytes are read before the first step and kept in registers, of
# which a thread has 255 of four bytes each; more are read where they are used.
MOST_KEPT = 400
# Operations of a step. Triton 3.7 compiles 1000 in 2 s, 4000 in 18 s, 8700 in 114 s (two cores).
MOST_OPERATIONS = 10_000


class Place(NamedTuple):
    """Where a constant lies: in which array, from which row on; and its shape."""

    array: int
    row: int
    shape: tuple[int, ...]

    @property
    def rows(self) -> range:
        return range(self.row, self.row + math.prod(self.shape))


def run_tile(program: Any, places: Sequence[Place | None], first: int, tile: int, *refs) -> None:
    """The loop over saves, in which the loop over steps, of a `program` (t, dt, x, *constants).

    `refs`: `first` of when to save, the constants, of which `places` are t0, dt and those of
    `program`, the first states and what is saved.
    """
    when, packed, (x_ref, y_ref) = refs[:first], refs[first:-2], refs[-2:]
    n, dtype = x_ref.shape[0], x_ref.dtype
    t0, dt, *constants = _constants(places, packed, tile)

    def advance(k: Array, h: Any, lanes: Lanes, x: tuple) -> tuple:
        t = lanes.add(t0.items[0], lanes.mul(k.astype(dtype), dt.items[0]))
        h = dt.items[0] if h is None else lanes.mul(h, dt.items[0])
        operands = [Entries((), [t]), Entries((), [h]), Entries((n,), list(x)), *constants]
        (out,) = scalarised(program, operands, lanes)
        return tuple(lanes.vector(lanes.convert(item, dtype)) for item in out.items)

    def save(s: Array, x: tuple) -> tuple:
        start, count = when[0][s], when[1][s]
        x = jax.lax.fori_loop(
            jnp.int32(0), count, lambda i, x: advance(start + i, None, _lanes(tile), x), x
        )
        out = x
        if first == 3:
            side, lanes = when[2][s], _lanes(tile)
            moved = advance(start + count, side, lanes, x)
            off = lanes.emit(jax.lax.ne_p.bind, side, side.dtype.type(0))
            out = tuple(lanes.select(off, a, b) for a, b in zip(x, moved, strict=True))
        _store(y_ref, s, out, tile)
        return x

    jax.lax.fori_loop(jnp.int32(0), jnp.int32(y_ref.shape[0]), save, _rows(x_ref, tile))


def _constants(places: Sequence[Place | None], packed: Sequence[Any], tile: int) -> list[Entries]:
    """What a thread keeps, and what it reads where it is used."""
    own = [_rows(ref, tile) if len(ref.shape) == 2 else None for ref in packed]
    held = sum(ref.size * ref.dtype.itemsize for ref in packed if len(ref.shape) == 1)

    def constant(place: Place | None, keep: bool) -> Entries:
        if place is None:
            return Entries((), [])
        rows, ref = own[place.array], packed[place.array]
        if rows is not None:
            return Entries(place.shape, [rows[k] for k in place.rows])
        reads = [functools.partial(_read, ref, k) for k in place.rows]
        return Entries(place.shape, [read() if keep else Loaded(read) for read in reads])

    return [constant(place, held <= MOST_KEPT or i < 2) for i, place in enumerate(places)]


def _read(ref: Any, k: int) -> Any:
    return ref[k]


# One load, or store, in a loop over the rows: Triton follows what goes in and out of each through
# the whole program, which with one for each unit took 70 of 78 s to compile 16 units.


def _rows(ref: Any, tile: int) -> tuple[Array, ...]:
    """The rows of `ref` (k, tile) as vectors."""

    def load(k: Array, rows: tuple) -> tuple:
        lanes, row = _lanes(tile), ref[k, :]
        return tuple(_where(lanes, k, i, row, old) for i, old in enumerate(rows))

    empty = jnp.zeros((tile,), ref.dtype)
    count = ref.shape[0]
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), load, (empty,) * count)


def _store(ref: Any, s: Array, rows: tuple, tile: int) -> None:
    def store(k: Array, _: None) -> None:
        lanes, out = _lanes(tile), rows[0]
        for i, row in enumerate(rows[1:], 1):
            out = _where(lanes, k, i, row, out)
        ref[s, k, :] = out

    jax.lax.fori_loop(jnp.int32(0), jnp.int32(len(rows)), store, None)


def _where(lanes: Lanes, k: Array, i: int, row: Any, other: Any) -> Any:
    """`row` where k is i."""
    return lanes.select(lanes.emit(jax.lax.eq_p.bind, k, np.int32(i)), other, row)


def _lanes(tile: int) -> Lanes:
    def refusal(most: int) -> Refused:
        return Refused(
            f"`engine=jaxdyn.Kernel` writes out a step number by number, and this one takes more "
            f"than {most} operations, too many to compile; take fewer units, a solver of fewer "
            "stages or a lower order, or leave `engine` out."
        )

    return Lanes(tile, MOST_OPERATIONS, refusal)
