"""What vmap makes of a kernel: a larger batch, or programs for each member."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array

# What CUDA allows of a grid beyond its first axis.
MOST_MEMBERS = 65_535


def in_one_batch(v: Array, size: int, batch: int, is_mapped: bool, is_own: bool) -> Array:
    """What `size` batches have, mapped over or not, as the one batch of all of them has it."""
    if not is_own:
        return jnp.repeat(v, batch, axis=0) if is_mapped else v
    if not is_mapped:
        v = jnp.broadcast_to(v, (size, *v.shape))
    return v.reshape(size * batch, *v.shape[2:])


def by_members(fn: Callable, own: Sequence[bool] | None = None) -> Callable:
    """`fn` of arrays, a `pallas_call`, for maps of any depth and length.

    Where `own`, arrays lead with the members, and so does what comes back.
    """

    @custom_vmap
    def run(*arrays: Array) -> Any:
        if own is None:
            return fn(*arrays)
        flagged = list(zip(arrays, own, strict=True))
        apart = [v for v, is_own in flagged if is_own]

        def member(apart):
            rest = iter(apart)
            return fn(*(next(rest) if is_own else v for v, is_own in flagged))

        if len(apart[0]) <= MOST_MEMBERS:
            return jax.vmap(member)(apart)
        return jax.lax.map(member, apart, batch_size=MOST_MEMBERS)

    @run.def_vmap
    def _(size, mapped, *arrays):
        flags = own or [False] * len(arrays)
        members = 1
        for v, is_mapped, is_own in zip(arrays, mapped, flags, strict=True):
            members = v.shape[1 if is_mapped else 0] if is_own else members
        given = [
            in_one_batch(v, size, members, is_mapped, is_own)
            for v, is_mapped, is_own in zip(arrays, mapped, flags, strict=True)
        ]
        flags = [a or b for a, b in zip(mapped, flags, strict=True)]
        outs = by_members(fn, flags)(*given)
        if own is not None:
            outs = jax.tree.map(lambda v: v.reshape(size, members, *v.shape[1:]), outs)
        return outs, jax.tree.map(lambda _: True, outs)

    return run
