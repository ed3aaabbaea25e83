"""All time steps in one Pallas kernel, a tile of trajectories at a time, W x by matrix products."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, PyTree, Shaped

from .._types import is_traced
from .engine import PRECISIONS, Kernel
from .entries import Loaded, as_numbers
from .mapped import by_members
from .rows import CannotServe, Rows, block, padded, sides

# Shared constants of up to so many bytes are read before the first step; more where they are used.
MOST_HELD = 16 * 1024
# Entries of a state that a warp takes care of.
AREA_OF_A_WARP = 512


class Pieces(NamedTuple):
    """How a step is taken on the pieces of a state."""

    units: Sequence[Any]
    """The places of each piece in x."""
    cut: Callable[[PyTree, PyTree], tuple[Callable, PyTree, PyTree]]
    """Of the constants of a solve and which of them are each trajectory's own, the `step(constants,
    t, dt, pieces)` of one trajectory with the constants and flags that it takes.

    **Raises:** CannotServe."""


class _Constant(NamedTuple):
    """A constant as it is in memory: a number (1,), a block, or one column for each trajectory."""

    array: Array
    spread: bool

    def spec(self, tile: int) -> pl.BlockSpec:
        return _columns_of(self.array, tile) if self.spread else _all_of(self.array)

    def seen(self, tile: int) -> jax.ShapeDtypeStruct:
        """What a program has of it."""
        rows = self.array.shape[:1]
        shape = (*rows, tile) if self.spread else self.array.shape if self.array.ndim > 1 else ()
        return jax.ShapeDtypeStruct(shape, self.array.dtype)


class States(NamedTuple):
    """What a step changes of each trajectory: numbers or vectors."""

    array: Shaped[Array, "b ..."]
    fill: str
    """How `jnp.pad` fills it up to whole tiles: "edge", or "constant" for 0. What `sums` are made
    of has to be 0 there, since they are taken over whole tiles."""


def integrate_in_blocks(
    pieces: Pieces,
    constants: PyTree,
    own: PyTree,
    when: Sequence[Array],
    x0: Float[Array, "b n"],
    t0: Array,
    dt: Array,
    kernel: Kernel,
) -> Float[Array, "b t n"]:
    """The states at the saves.

    **Raises:** CannotServe where a step takes more than functions of numbers, sums, and products of
    vectors with a matrix that all trajectories share.
    """
    step, constants, own = pieces.cut(constants, own)

    def advance(constants, t, dt, xs, sums):
        return step(constants, t, dt, xs), sums

    states = [States(x0[:, c], "edge") for c in pieces.units]
    tile = kernel.columns(len(x0))
    ys, _ = run_in_blocks(advance, constants, own, when, states, [], t0, dt, kernel, tile)
    out = jnp.zeros((*ys[0].shape[:2], x0.shape[1]), x0.dtype)
    for c, y in zip(pieces.units, ys, strict=True):
        out = out.at[:, :, c].set(y)
    return out


def run_in_blocks(
    step: Callable,
    constants: PyTree,
    own: PyTree,
    when: Sequence[Array],
    states: Sequence[States],
    sums: Sequence[jax.ShapeDtypeStruct],
    t0: Array,
    dt: Array,
    kernel: Kernel,
    tile: int,
) -> tuple[list[Array], list[Array]]:
    """The states (b, t, ...) at the saves, and the `sums`, matrices, at the last.

    `step(constants, t, dt, states, sums)` are both after a step of one trajectory. It may add to
    `sums` products of two vectors, u v^T; what comes back is 0 and all that was added for all
    trajectories.

    **Raises:** CannotServe, as [`integrate_in_blocks`][].
    """
    leaves, structure = jax.tree.flatten(constants)
    leaves, restored = as_numbers(leaves)
    flags = [*jax.tree.leaves(own)]
    batch = states[0].array.shape[0]
    shapes = [v.array.shape[1:] for v in states]

    def flat(t, dt, xs, totals, *leaves):
        return step(jax.tree.unflatten(structure, restored(leaves)), t, dt, xs, totals)

    program = jax.make_jaxpr(flat)(
        *(jax.ShapeDtypeStruct((), v.dtype) for v in (t0, dt)),
        tuple(jax.ShapeDtypeStruct(v.array.shape[1:], v.array.dtype) for v in states),
        tuple(sums),
        *(
            jax.ShapeDtypeStruct(v.shape[1:] if apart else v.shape, v.dtype)
            for v, apart in zip(leaves, flags, strict=True)
        ),
    )
    if is_traced(program.consts):
        raise CannotServe("what a function closes over and jit, grad or vmap trace")
    arrays, flags = [*program.consts, *leaves], [False] * len(program.consts) + flags
    given = [_Constant(v.reshape(1), False) for v in (t0, dt)]
    for v, apart in zip(arrays, flags, strict=True):
        given.append(_stored(jnp.asarray(v), apart, tile))
    first = [_across(v.array, tile, v.fill) for v in states]
    advance = _Advance(program.jaxpr, shapes, kernel)
    totals = [jax.ShapeDtypeStruct(tuple(map(padded, sides(v.shape))), v.dtype) for v in sums]
    # Here an operation that cannot be served can still be answered by other means.
    jax.eval_shape(
        lambda given, k, xs: advance(given, k, None, xs),
        [constant.seen(tile) for constant in given],
        jax.ShapeDtypeStruct((), np.int32),
        [*(jax.ShapeDtypeStruct((v.shape[0], tile), v.dtype) for v in first), *totals],
    )
    when = [v.astype(np.int32) if v.dtype.kind == "i" else v for v in map(jnp.asarray, when)]
    saved, columns = when[0].shape[0], first[0].shape[1]
    specs = [_all_of(v) for v in when] + [constant.spec(tile) for constant in given]
    area = tile * max(v.shape[0] for v in first) + sum(v.size for v in totals)
    run = pl.pallas_call(
        lambda *refs: _run_tile(advance, len(when), given, len(first), totals, refs),
        grid=(columns // tile,),
        in_specs=specs + [_columns_of(v, tile) for v in first],
        out_specs=[
            *(pl.BlockSpec((saved, len(v), tile), lambda i: (0, 0, i)) for v in first),
            *(pl.BlockSpec((1, *v.shape), lambda i: (i, 0, 0)) for v in totals),
        ],
        out_shape=[
            *(jax.ShapeDtypeStruct((saved, *v.shape), v.dtype) for v in first),
            *(jax.ShapeDtypeStruct((columns // tile, *v.shape), v.dtype) for v in totals),
        ],
        compiler_params=triton.CompilerParams(num_warps=_warps(area), num_stages=1),
        interpret=kernel.interpret,
        name="jaxdyn_steps",
    )
    outs = by_members(run)(*when, *(constant.array for constant in given), *first)
    ys, totals = outs[: len(first)], outs[len(first) :]
    ys = [
        jnp.moveaxis(y[:, : math.prod(shape), :batch], -1, 0).reshape(batch, saved, *shape)
        for shape, y in zip(shapes, ys, strict=True)
    ]
    return ys, [_cut(jnp.sum(v, axis=0), like.shape) for v, like in zip(totals, sums, strict=True)]


def _warps(area: int) -> int:
    """A power of two."""
    return min(8, 1 << max(0, (area // AREA_OF_A_WARP).bit_length() - 1))


def _cut(total: Array, shape: tuple[int, ...]) -> Array:
    rows, columns = sides(shape)
    return total[:rows, :columns].reshape(shape)


def _all_of(v: Array) -> pl.BlockSpec:
    return pl.BlockSpec(v.shape, lambda i: (0,) * v.ndim)


def _columns_of(v: Array, tile: int) -> pl.BlockSpec:
    return pl.BlockSpec((v.shape[0], tile), lambda i: (0, i))


def _across(v: Shaped[Array, "b ..."], tile: int, fill: Any = "edge") -> Shaped[Array, "K B"]:
    """One column for each trajectory, filled up to whole blocks and tiles."""
    batch, k = v.shape[0], math.prod(v.shape[1:])
    v = jnp.pad(v.reshape(batch, k), ((0, -batch % tile), (0, 0)), mode=fill)
    return jnp.pad(v, ((0, 0), (0, 0 if k == 1 else padded(k) - k))).T


def _stored(v: Array, apart: bool, tile: int) -> _Constant:
    shape = sides(v.shape[1:] if apart else v.shape)
    if 0 in shape or len(shape) > (1 if apart else 2):
        raise CannotServe("weights of each trajectory's own" if apart else f"an array {v.shape}")
    if apart:
        return _Constant(_across(v, tile), True)
    v = v.reshape(shape or (1,))
    v = jnp.pad(v, [(0, padded(k) - k) for k in shape] or [(0, 0)])
    return _Constant(v[:, None] if len(shape) == 1 else v, False)


class _Advance:
    """A step of a whole tile."""

    def __init__(self, jaxpr: Any, shapes: Sequence[tuple], kernel: Kernel):
        self.jaxpr, self.shapes = jaxpr, shapes
        self.rows = Rows(_product(kernel))

    def __call__(self, given: Sequence[Any], k: Any, h: Any, xs: Sequence[Any]) -> tuple:
        """From step `k` on, by `h` of a step; None is a whole one."""
        (t0, dt), rest = given[:2], given[2:]
        consts = len(self.jaxpr.constvars)
        t = t0 + k.astype(dt.dtype) * dt
        operands = [t, dt if h is None else h * dt, *xs, *rest[consts:]]
        outs = self.rows.start(self.jaxpr, rest[:consts], operands, xs[len(self.shapes) :])
        moved = [
            jnp.broadcast_to(block(out, *size) if size else out, x.shape).astype(x.dtype)
            for out, size, x in zip(outs, map(sides, self.shapes), xs, strict=False)
        ]
        return *moved, *outs[len(moved) :]


def _product(kernel: Kernel) -> Callable[[Array, Array], Array]:
    """The product of a matrix and a block in the kernel's precision, summed in that of x0."""

    def multiply(a: Array, b: Array) -> Array:
        if a.dtype != jnp.float32:
            return lax.dot_general(a, b, dims, lax.Precision.HIGHEST, a.dtype)
        if kernel.interpret:
            return multiplied_in_parts(a, b, kernel.products)
        return lax.dot_general(a, b, dims, kernel.products, a.dtype)

    dims = (((1,), (0,)), ((), ()))
    return multiply


def multiplied_in_parts(
    a: Float[Array, "k l"], b: Float[Array, "l m"], precision: lax.DotAlgorithmPreset
) -> Float[Array, "k m"]:
    """What a GPU makes of a product in that precision, up to the order of sums."""
    digits, count = PRECISIONS[precision]

    def parts(v: Array) -> list[Array]:
        out = []
        for _ in range(count):
            out.append(lax.reduce_precision(v, 8, digits))
            v = v - out[-1]
        return out

    left, right, total = parts(a), parts(b), jnp.zeros((len(a), b.shape[1]), a.dtype)
    # The smallest first, and not those of two last parts.
    for order in reversed(range(max(1, 2 * count - 2))):
        for i in range(count):
            if 0 <= order - i < count:
                total += jnp.matmul(left[i], right[order - i], precision=lax.Precision.HIGHEST)
    return total


def _run_tile(
    advance: _Advance,
    first: int,
    given: Sequence[_Constant],
    pieces: int,
    totals: Sequence[jax.ShapeDtypeStruct],
    refs: Sequence[Any],
) -> None:
    """The loop over saves, in which the loop over steps.

    `refs`: `first` of when to save, the constants, the first states, what is saved, and the totals.
    """
    when, refs = refs[:first], refs[first:]
    places, refs = refs[: len(given)], refs[len(given) :]
    x_refs, y_refs, total_refs = refs[:pieces], refs[pieces : 2 * pieces], refs[2 * pieces :]
    held = sum(ref.size * ref.dtype.itemsize for ref in places) <= MOST_HELD
    values = [
        Loaded(lambda ref=ref: ref[...])
        if ref.ndim == 2 and ref.shape[1] > 1 and not constant.spread and not held
        else ref[0]
        if ref.ndim == 1
        else ref[...]
        for constant, ref in zip(given, places, strict=True)
    ]

    def save(s: Array, xs: tuple) -> tuple:
        start, count = when[0][s], when[1][s]
        xs = lax.fori_loop(
            jnp.int32(0), count, lambda i, xs: advance(values, start + i, None, xs), xs
        )
        out = xs
        if first == 3:
            side = when[2][s]
            moved = advance(values, start + count, side, xs)
            off = side != jnp.zeros((), side.dtype)
            out = tuple(jnp.where(off, a, b) for a, b in zip(moved, xs, strict=True))
        for ref, x in zip(y_refs, out, strict=False):
            ref[s, :, :] = x
        return xs

    state = *(ref[...] for ref in x_refs), *(jnp.zeros(v.shape, v.dtype) for v in totals)
    state = lax.fori_loop(jnp.int32(0), jnp.int32(y_refs[0].shape[0]), save, state)
    for ref, total in zip(total_refs, state[pieces:], strict=True):
        ref[0, :, :] = total
