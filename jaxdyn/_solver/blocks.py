"""Kicks of single units in blocks: one after the other inside, one matrix product for the rest."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import Precision
from jax.lax import optimization_barrier as barrier
from jaxtyping import Array, Float

from .._cell import AbstractCell
from .base import Step, beside
from .flows import SWEEP, AbstractFlows, Part

# Units are kicked one after the other inside a block, which then moves all others in one matrix
# product. Of 1, 4, 8, 16, 32 at n = 64 and 256, 4 and 8 are level and the fastest
# (benchmarks/splitting_block.py).
BLOCK = 8
# Up to this many blocks a sweep is unrolled; beyond, it is a loop, to keep compile time flat. The
# derivative of an unrolled sweep takes minutes to compile, and no less time to run.
MAX_UNROLLED_BLOCKS, MAX_UNROLLED_DERIVATIVES = 16, 2


class BlockCell(eqx.Module):
    """A cell with W cut into blocks of columns, once a solve: XLA would cut them at every step.

    The last block is padded with units that neither move nor are moved.
    """

    cell: AbstractCell
    columns: Float[Array, "k N w"]
    within: Float[Array, "k w w"]

    def __init__(self, cell: AbstractCell):
        self.cell = cell
        k = -(-cell.size // BLOCK)
        pad = k * BLOCK - cell.size
        matrix = jnp.pad(cell.operator.as_matrix(), ((0, pad), (0, pad)))
        self.columns = jnp.moveaxis(matrix.reshape(k * BLOCK, k, BLOCK), 1, 0)
        self.within = jnp.stack([self.columns[i, i * BLOCK : (i + 1) * BLOCK] for i in range(k)])


class Memo(eqx.Module):
    """What is noted while steps are undone, for their gradient.

    One product with the notes of several sweeps takes a fraction of the time that one each takes.
    """

    gradient: Step
    tangent: Float[Array, "N b"]
    sweeps: tuple | None
    """Of the descending and of the ascending sweeps, side by side: the cotangents before they were
    undone, what these gained, and the pulses."""

    def total(self) -> Step:
        """The gradient of all that was noted."""
        if self.sweeps is None:
            return self.gradient
        dW = self.gradient.cell.operator.matrix
        n = dW.shape[0]
        for (l, dl, pulses), later in zip(self.sweeps, (jnp.triu, jnp.tril), strict=True):
            # The gradient for W[r, i] is the cotangent of r at the kick of i times its pulse.
            # Units kicked later than i were undone before.
            first, gained = (
                jnp.matmul(v[:n], pulses[:n].T, precision=Precision.HIGHEST) for v in (l, dl)
            )
            dW = dW - first - later(gained)
        return eqx.tree_at(lambda g: g.cell.operator.matrix, self.gradient, dW)


class BlockFlows(AbstractFlows):
    """z and y are padded to whole blocks."""

    def __init__(self, step: Step, batch: int | None, grid: float | None, blocks: BlockCell):
        super().__init__(step, batch, grid)
        self.blocks = blocks
        self.names.append(SWEEP)
        self.count, self.padded = blocks.columns.shape[:2]
        self.kicks = self.padded

    def pad(self, x):
        return jnp.pad(x, [(0, self.padded - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    def begin(self, x, t):
        if not self.antisymmetric:
            return self.pad(x), None
        return self.pad(self.preactivation(x, t)), self.pad(x)

    def end(self, state):
        z, y = state
        return (z if y is None else y)[: self.cell.size]

    def kick(self, part: Part, state):
        z, y = state
        z, kicks = _swept(self.step, self.blocks, part, z, y, batch=self.batch, grid=self.grid)
        return z, None if y is None else y + self.scale(part.coefficient * self.dt) * kicks

    def memo(self, cotangent, wanted: Step, steps: int) -> "Memo":
        """An empty memo for `steps` steps that lead back from a state of that cotangent."""
        l, m = cotangent
        W, n = self.cell.operator.as_matrix(), self.cell.size
        e = self.pad(jnp.matmul(W, l[:n], precision=Precision.HIGHEST))
        e = e if m is None else e - m
        zero = jax.tree.map(jnp.zeros_like, eqx.filter(self.step, wanted))
        sweeps = None
        if wanted.cell.operator.matrix:
            empty = jnp.zeros((l.shape[0], steps * l.shape[1]), l.dtype)
            sweeps = ((empty,) * 3,) * 2
        return Memo(zero, e, sweeps)

    def renewed(self, memo: "Memo", cotangent) -> "Memo":
        """`memo` at the end of a step. In the antisymmetric form z starts anew with every step."""
        _, m = cotangent
        return memo if m is None else eqx.tree_at(lambda memo: memo.tangent, memo, -m)

    def pull(self, part: Part, state, cotangent, memo: "Memo", slot, wanted: Step):
        """The state before a sweep and its cotangent, with a note in `memo`.

        The sweep is undone, and what its gradient needs is met on the way. With l the cotangent of
        z and m that of y, a kick z += h W[:, i] s(z_i) pulls back to
        l_i += h s'(z_i) (m_i - (W l)_i), because W^T = -W: so e = W l - m moves as a tangent vector
        of the inverse sweep, and l gains the tangents of its pulses.
        """
        (z, y), (l, m) = state, cotangent
        back = part.reversed()
        h = back.coefficient * self.dt
        (z, kicks, kicked), (e, dkicks, dkicked) = jax.jvp(
            lambda z: self.sweep(back, z, None), (z,), (memo.tangent,)
        )
        gradient, sweeps, dl = memo.gradient, memo.sweeps, h * dkicks
        if sweeps is not None:
            place = slot * l.shape[1]
            noted = tuple(
                jax.lax.dynamic_update_slice_in_dim(all, v, place, 1)
                for all, v in zip(sweeps[part.ascending], (l, dl, h * kicks), strict=True)
            )
            sweeps = (sweeps[0], noted) if part.ascending else (noted, sweeps[1])
        s, ct = self.cell.activation, -part.coefficient * dkicked
        if wanted.dt:
            of_dt = gradient.dt + jnp.sum(kicks * ct)
            gradient = eqx.tree_at(lambda g: g.dt, gradient, of_dt)
        if any(jax.tree.leaves(wanted.cell.activation)):
            free, fixed = eqx.partition(s, wanted.cell.activation)
            _, vjp = jax.vjp(lambda free: eqx.combine(free, fixed)(kicked), free)
            of_s = jax.tree.map(jnp.add, gradient.cell.activation, vjp(self.dt * ct)[0])
            gradient = eqx.tree_at(lambda g: g.cell.activation, gradient, of_s)
        state = z, None if y is None else y + h * kicks
        return state, (l + dl, m), Memo(gradient, e, sweeps)

    def sweep(self, part: Part, z, y, unrolled: int | None = None):
        """z after the kicks of all units, the kicks, and what z each unit was kicked at.

        Written for any axes after that of the units, and not for one trajectory: mapped over a
        batch, products with W would move it to the major axis.
        """
        h = part.coefficient * self.dt
        damping = self.cell.damping if self.antisymmetric else None
        if damping is not None:
            damping = self.pad(jnp.broadcast_to(damping, (self.cell.size,)))
            damping = jnp.broadcast_to(beside(damping, z), z.shape)

        def kick(z, i):
            return self._block(h, part.ascending, i, z, y, damping)

        if self.count > (MAX_UNROLLED_BLOCKS if unrolled is None else unrolled):
            order = jnp.arange(self.count)
            z, rows = jax.lax.scan(kick, z, order, reverse=not part.ascending)
            return z, *(r.reshape(z.shape) for r in rows)
        out: list[Any] = [None] * self.count
        for i in range(self.count) if part.ascending else reversed(range(self.count)):
            z, out[i] = kick(z, i)
        return z, *(barrier(jnp.concatenate(rows)) for rows in zip(*out, strict=True))

    def _block(self, h, ascending, i, z, y, damping):
        """z after the kicks of block `i`; the kicks, and what z each was kicked at."""
        units = [None if v is None else _rows(v, i) for v in (z, y, damping)]
        kicks, kicked = self._in_turn(h, ascending, self.blocks.within[i], *units)
        columns = self.scale(h) * self.blocks.columns[i]
        # One pass over z. As one product with `columns` it takes three and half the speed. Without
        # the barrier XLA works z out again for every unit of the next block.
        changes = (self.snapped(columns[:, j : j + 1] @ g) for j, g in enumerate(kicks))
        z = barrier(z + sum(changes, start=jnp.zeros((), z.dtype)))
        # A concatenation that XLA fuses with what follows takes a hundred times as long.
        return z, (barrier(jnp.concatenate(kicks)), barrier(jnp.concatenate(kicked)))

    def _in_turn(self, h, ascending, within, z, y, damping):
        """Kicks of the units of one block, each seeing the pulses of those before it."""
        own = [z[i : i + 1] for i in range(BLOCK)]
        kicks: list = [None] * BLOCK
        within = self.scale(h) * within
        order = list(range(BLOCK)) if ascending else list(reversed(range(BLOCK)))
        for position, i in enumerate(order):
            yi, di = (None if v is None else v[i : i + 1] for v in (y, damping))
            # Without the barrier XLA works every earlier kick out again for each later one.
            kicks[i] = barrier(self.kick_of(h, own[i], yi, di))
            for j in order[position + 1 :]:
                own[j] = own[j] + self.snapped(within[j, i] * kicks[i])
        return kicks, own


@eqx.filter_custom_jvp
def _swept(step: Step, blocks: BlockCell, part: Part, z, y, *, batch, grid):
    """z after a sweep, and the kicks. Everything there is to differentiate by is an argument."""
    return BlockFlows(step, batch, grid, blocks).sweep(part, z, y)[:2]


@_swept.def_jvp
def _(primals, tangents, *, batch, grid):
    def looped(step, blocks, part, z, y):
        flows = BlockFlows(step, batch, grid, blocks)
        return flows.sweep(part, z, y, unrolled=MAX_UNROLLED_DERIVATIVES)[:2]

    return eqx.filter_jvp(looped, primals, tangents)


def _rows(v: Array, i: Any) -> Array:
    """Block `i` of the rows of `v`."""
    if isinstance(i, int):
        return v[i * BLOCK : (i + 1) * BLOCK]
    return jax.lax.dynamic_slice_in_dim(v, i * BLOCK, BLOCK)
