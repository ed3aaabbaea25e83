"""All time steps in one Pallas kernel: by matrix products, or one trajectory per lane.

The Triton lowering of JAX 0.10 has no slices, gathers or arrays whose size is no power of two: in
the kernel there are only scalars, vectors over the tile, elementwise functions, loops with vectors
as carry, and loads and stores of one row.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int, PyTree

from .._types import is_traced
from .blocks import Pieces, integrate_in_blocks
from .engine import Kernel
from .entries import Refused, as_numbers
from .mapped import in_one_batch
from .rows import CannotServe
from .tile import Place, run_tile

# Up to so many units a trajectory in a thread's registers; beyond, products of matrices where those
# can serve, and up to the second number else.
MOST_LANES, MOST_TAKEN_APART = 16, 64


class Saves(NamedTuple):
    """When to save: save s comes `count` steps after the one before, at step `start` + `count`,
    and a fraction `side` of a step later, from which nothing goes on (None: all on the grid)."""

    start: Int[Array | np.ndarray, " t"]
    count: Int[Array | np.ndarray, " t"]
    side: Float[Array | np.ndarray, " t"] | None


def integrate_in_kernel(
    step: Callable[[PyTree, Array, Array, Array], Array],
    constants: PyTree,
    own: PyTree,
    x0: Float[Array, "b n"],
    t0: Float[Array, ""],
    dt: Float[Array, ""],
    saves: Saves,
    kernel: Kernel,
    pieces: Pieces | None = None,
) -> Float[Array, "b t n"]:
    """The states at the saves.

    `step(constants, t, dt, x)` is the state of one trajectory after a step from `x` (n,) at `t`,
    for any `dt`; every time it is t0 + k dt. It is traced once, so that any vector field, x' =
    f(t, x), can be solved by a method written out in it. The leaves of `constants` are arrays that
    all trajectories share; where `own`, a tree prefix of bools, is True they lead with the batch.

    Under vmap the batch grows by the mapped axis, and what is mapped over becomes each
    trajectory's own; or, where products cannot be taken so, each member has programs of its own.

    More than `MOST_LANES` units go by `pieces`, if there are any, with products of matrices; what
    cannot be done so is taken apart into numbers.

    **Raises:** ValueError when a step cannot be taken apart, or is too long.
    """
    # The lowering says so to whoever comes first; the kernel's room is where it matters.
    warnings.filterwarnings(
        "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
    )
    leaves, structure = jax.tree.flatten(constants)
    leaves, restored = as_numbers(leaves)
    flags = jax.tree.leaves(jax.tree.map(lambda o, c: jax.tree.map(lambda _: o, c), own, constants))

    def flat(t: Array, dt: Array, x: Array, *leaves: Array) -> Array:
        return step(jax.tree.unflatten(structure, restored(leaves)), t, dt, x)

    def products(own, when, x0, rest):
        t0, dt, *leaves = rest
        assert pieces is not None
        if any(own[:2]):
            raise CannotServe("times of each trajectory's own")
        of_all = jax.tree.unflatten(structure, restored(leaves))
        flags = jax.tree.unflatten(structure, own[2:])
        return integrate_in_blocks(pieces, of_all, flags, when, x0, t0, dt, kernel)

    def lanes(own, when, x0, rest):
        return _in_lanes(flat, own, when, x0, rest, kernel)

    if pieces is None or x0.shape[1] <= MOST_LANES:
        ways = _Ways(lanes, None)
    else:
        ways = _Ways(_either(products, lanes, x0.shape[1]), products)
    run = _batched(ways.solve, ways, (False, False, *flags), None, saves.side is not None)
    side = () if saves.side is None else (saves.side,)
    return run(saves.start, saves.count, *side, x0, t0, dt, *leaves)


class _Ways(NamedTuple):
    """How a batch can be solved: functions of (own, when, x0, rest)."""

    solve: Callable
    products: Callable | None
    """Raises CannotServe where `solve` goes on by other means."""


def _either(products: Callable, lanes: Callable, n: int) -> Callable:
    """A solve by products, or taken apart where those cannot serve."""

    def solve(*given):
        try:
            return products(*given)
        except CannotServe as reason:
            if n > MOST_TAKEN_APART:
                raise ValueError(
                    f"`engine=jaxdyn.Kernel` cannot carry out {reason} with matrix products, "
                    f"and takes up to {MOST_TAKEN_APART} units without; leave `engine` out."
                ) from reason
            try:
                return lanes(*given)
            except Refused as error:
                why = f"{error} By matrix products it cannot carry out {reason}."
                raise Refused(why) from reason

    return solve


def _batched(
    now: Callable,
    ways: _Ways,
    own: Sequence[bool],
    of_member: Sequence[bool] | None,
    sided: bool,
) -> Callable:
    """The solve `now` as a function of (start, count[, side], x0, t0, dt, *leaves), for maps.

    Where `of_member`, x0 and what follows lead with members, each of which is a batch that has
    programs of its own. A map makes batches larger, where products can serve that; else more
    members, or without products a larger batch all the same.
    """
    first = 2 + sided
    each = [True, *own]

    def solve(*arrays):
        return now(own, arrays[:first], arrays[first], arrays[first + 1 :])

    @custom_vmap
    def run(*arrays):
        if of_member is None:
            return solve(*arrays)
        axes = [None] * first + [0 if m else None for m in of_member]
        return jax.vmap(solve, axes)(*arrays)

    @run.def_vmap
    def _(size, mapped, *arrays):
        if any(mapped[:first]):
            raise ValueError("`saveat` cannot be mapped over with `engine=jaxdyn.Kernel`.")
        when, mapped, arrays = arrays[:first], mapped[first:], arrays[first:]
        apart = [False] * len(arrays) if of_member is None else of_member
        batch = arrays[0].shape[mapped[0] + apart[0]]

        def larger(now):
            given = []
            for v, again, is_own, lead in zip(arrays, mapped, each, apart, strict=True):
                merge = functools.partial(
                    in_one_batch, size=size, batch=batch, is_mapped=again, is_own=is_own
                )
                given.append(jax.vmap(merge, 1 if again else 0)(v) if lead else merge(v))
            flags = [a or b for a, b in zip(mapped[1:], own, strict=True)]
            ys = _batched(now, ways, flags, of_member, sided)(*when, *given)
            if of_member is None:
                return ys.reshape(size, batch, *ys.shape[1:])
            return jnp.moveaxis(ys.reshape(-1, size, batch, *ys.shape[2:]), 1, 0)

        def more():
            if of_member is None:
                assert ways.products is not None
                return _batched(ways.products, ways, own, mapped, sided)(*when, *arrays)
            members = next(
                v.shape[1 if again else 0]
                for v, again, lead in zip(arrays, mapped, apart, strict=True)
                if lead
            )
            given = [
                in_one_batch(v, size, members, again, lead)
                for v, again, lead in zip(arrays, mapped, apart, strict=True)
            ]
            flags = [a or b for a, b in zip(mapped, apart, strict=True)]
            ys = _batched(now, ways, own, flags, sided)(*when, *given)
            return ys.reshape(size, members, *ys.shape[1:])

        if ways.products is not None:
            for attempt in (functools.partial(larger, ways.products), more):
                with contextlib.suppress(CannotServe):
                    return attempt(), True
        return larger(ways.solve), True

    return run


def _in_lanes(step, own, when, x0, rest, kernel: Kernel) -> Float[Array, "b t n"]:
    batch, n = x0.shape
    tile = kernel.lanes(batch)
    padding = -batch % tile
    single = [
        jax.ShapeDtypeStruct(v.shape[1:] if apart else v.shape, v.dtype)
        for v, apart in zip(rest, own, strict=True)
    ]
    program = jax.make_jaxpr(step)(*single[:2], jax.ShapeDtypeStruct((n,), x0.dtype), *single[2:])
    if is_traced(program.consts):
        raise ValueError(
            "`engine=jaxdyn.Kernel` cannot serve a step that closes over what jit, grad or vmap "
            "trace; pass it as an argument or a field of an eqx.Module, or leave `engine` out."
        )

    def rows(v: Array) -> Array:
        """(b, ...) as rows of lanes."""
        return jnp.pad(v.reshape(batch, -1).T, ((0, 0), (0, padding)), mode="edge")

    used = _used(program.jaxpr)
    used = [True, True, *used[3:]]
    arrays, places = _packed(rest, own, used, rows)
    when = [v.astype(np.int32) if v.dtype.kind == "i" else v for v in map(jnp.asarray, when)]
    inputs = [*when, *arrays, rows(x0)]
    whole = [pl.BlockSpec(v.shape, lambda i, d=v.ndim: (0,) * d) for v in inputs]
    shared = [v.ndim == 1 for v in inputs]
    specs = [
        spec if same else pl.BlockSpec((v.shape[0], tile), lambda i: (0, i))
        for spec, same, v in zip(whole, shared, inputs, strict=True)
    ]
    saved = when[0].shape[0]
    body = functools.partial(run_tile, program, places, len(when), tile)
    ys = pl.pallas_call(
        body,
        grid=((batch + padding) // tile,),
        in_specs=specs,
        out_specs=pl.BlockSpec((saved, n, tile), lambda i: (0, 0, i)),
        out_shape=jax.ShapeDtypeStruct((saved, n, batch + padding), x0.dtype),
        compiler_params=triton.CompilerParams(num_warps=kernel.warps(batch), num_stages=1),
        interpret=kernel.interpret,
        name="jaxdyn_steps",
    )(*inputs)
    return jnp.moveaxis(ys[:, :, :batch], -1, 0)


def _used(jaxpr: Any) -> list[bool]:
    """Which of its arguments a program looks at."""
    seen = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return [id(v) in seen for v in jaxpr.invars]


def _packed(rest, own, used, rows) -> tuple[list[Array], list[Place | None]]:
    """The constants in one array for each dtype, and for shared ones and own ones."""
    groups: dict[Any, list[Array]] = {}
    for v, apart, wanted in zip(rest, own, used, strict=True):
        if wanted and v.size:
            groups.setdefault((v.dtype, apart), []).append(v)
    order = list(groups)
    filled = dict.fromkeys(order, 0)
    places: list[Place | None] = []
    for v, apart, wanted in zip(rest, own, used, strict=True):
        key, shape = (v.dtype, apart), v.shape[1:] if apart else v.shape
        if not wanted or not v.size:
            places.append(None if v.size else Place(0, 0, shape))
            continue
        places.append(Place(order.index(key), filled[key], shape))
        filled[key] += int(np.prod(shape))
    arrays = [
        jnp.concatenate([rows(v) if apart else v.ravel() for v in groups[dtype, apart]])
        for dtype, apart in order
    ]
    return arrays, places
