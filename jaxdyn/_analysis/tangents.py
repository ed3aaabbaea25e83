"""Tangent vectors along a trajectory: the exact derivative of the solver's own steps."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .flow import Flow

# Above so many vectors LAPACK orthonormalises faster than loops over them, and compiles at once.
UNROLLED = 16


class Schedule(eqx.Module):
    """`records` times `rounds` times `every` steps of dt; vectors are renewed after every `every`
    steps, and something is kept of each record."""

    records: int = eqx.field(static=True)
    rounds: int = eqx.field(static=True)
    every: int = eqx.field(static=True)

    @staticmethod
    def of(steps: int, every: int, records: int) -> "Schedule":
        """At least `steps` steps, hardly more, in about as many records, if there are rounds."""
        rounds = -(-steps // every)
        each = -(-rounds // records)
        return Schedule(-(-rounds // each), each, every)

    @property
    def steps(self) -> int:
        return self.records * self.rounds * self.every


def along(
    flow: Flow,
    x: Float[Array, "n b"],
    vectors: Float[Array, "k n b"],
    dt: Float[Array, ""],
    schedule: Schedule,
    renew: Callable[[Float[Array, "k n b"]], tuple[Float[Array, "k n b"], Any]],
    read: Callable[[Float[Array, "k n b"]], Any],
) -> tuple[Float[Array, "n b"], tuple[Any, Any]]:
    """The last state; and for each record the sum of what `renew` returned in its rounds, and what
    `read` makes of the vectors at its end."""
    flow = flow.prepared(dt)

    def step(carry, _):
        k, x, vectors = carry
        moved, push = jax.linearize(lambda x: flow.advance_batch(k * dt, dt, x), x)
        return (k + 1, moved, jax.vmap(push)(vectors)), None

    def renewal(carry, _):
        (k, x, vectors), total = carry
        (k, x, vectors), _ = jax.lax.scan(step, (k, x, vectors), None, length=schedule.every)
        vectors, new = renew(vectors)
        return ((k, x, vectors), jax.tree.map(jnp.add, total, new)), None

    def record(carry, _):
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(renew, carry[2])[1])
        (carry, total), _ = jax.lax.scan(renewal, (carry, zero), None, length=schedule.rounds)
        return carry, (total, read(carry[2]))

    start = (jnp.zeros((), x.dtype), x, vectors)
    (_, x, _), kept = jax.lax.scan(record, start, None, length=schedule.records)
    return x, kept


def orthonormal(
    vectors: Float[Array, "k n b"],
) -> tuple[Float[Array, "k n b"], Float[Array, "k b"]]:
    """The vectors made orthonormal one after the other (Q of QR), and the logarithms of their
    lengths on the way (the diagonal of R)."""
    if vectors.shape[0] > UNROLLED:
        q, r = jnp.linalg.qr(jnp.moveaxis(vectors, -1, 0).swapaxes(1, 2))
        sizes = jnp.abs(jnp.diagonal(r, axis1=1, axis2=2))
        return jnp.moveaxis(q.swapaxes(1, 2), 0, -1), jnp.log(sizes).T
    done, sizes = [], []
    for vector in vectors:
        rest = vector
        for q in done:
            rest = rest - jnp.sum(q * rest, axis=0)[None] * q
        size = jnp.sqrt(jnp.sum(rest * rest, axis=0))
        done.append(rest / size[None])
        sizes.append(size)
    return jnp.stack(done), jnp.log(jnp.stack(sizes))


def unit(vectors: Float[Array, "k n b"]) -> Float[Array, "k n b"]:
    """Each vector of length 1."""
    return vectors / jnp.sqrt(jnp.sum(vectors**2, axis=1))[:, None]


def random_frame(key: Array, x: Float[Array, "n b"], k: int) -> Float[Array, "k n b"]:
    """k orthonormal vectors, the same for every trajectory."""
    frame = jax.random.orthogonal(key, x.shape[0], dtype=x.dtype)[:k]
    return jnp.broadcast_to(frame[:, :, None], (*frame.shape, x.shape[1]))
