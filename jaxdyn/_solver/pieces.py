"""Kicks for kernels that multiply blocks: the state is a tuple of pieces, never cut or joined."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._activation import AbstractActivation
from .._cell import PoissonCell, evaluate_input
from .._skew import BlockSkew
from .base import Step
from .flows import AbstractFlows, Part

# Units that are all coupled go in two halves, of a power of two that Triton multiplies. In quarters
# there would be less to do unit by unit, but many products of small matrices: of 64 units a program
# that takes 25 s to compile instead of 3.
LEAST_PIECE = 16


class PieceCell(eqx.Module):
    """A PoissonCell with W, the bias and so on cut into the pieces of its units."""

    couplings: tuple[tuple[Array | None, ...], ...]
    """`couplings[d][c]` is what piece c does to piece d: a matrix, its diagonal where it has
    nothing else, or None."""
    activation: AbstractActivation
    bias: tuple[Array, ...] | None
    input_matrix: tuple[Array, ...] | None
    damping: tuple[Array, ...] | None
    in_turn: bool = eqx.field(static=True)
    """Whether the units of a piece are coupled, and so move one after the other."""

    def __init__(self, cell: PoissonCell, places: Sequence[Any], in_turn: bool):
        def cut(v: Array | None) -> tuple[Array, ...] | None:
            return None if v is None else tuple(v[c] for c in places)

        n = cell.size
        if isinstance(cell.operator, BlockSkew):
            omega = cell.operator.omega
            self.couplings = ((None, omega), (-omega, None))
        else:
            W = cell.operator.as_matrix()
            self.couplings = tuple(
                tuple(None if c is d and not in_turn else W[d][:, c] for c in places)
                for d in places
            )
        self.activation = cell.activation
        self.bias, self.input_matrix = cut(cell.bias), cut(cell.input_matrix)
        damping = cell.damping
        self.damping = cut(None if damping is None else jnp.broadcast_to(damping, (n,)))
        self.in_turn = in_turn

    def drive(self, t: Any, args: Any) -> tuple[Array, ...] | None:
        """U u(t) + b of each piece; None for neither."""
        if args is None or self.input_matrix is None:
            return self.bias
        u = evaluate_input(args, t)
        driven = tuple(U @ u.astype(U.dtype) for U in self.input_matrix)
        if self.bias is None:
            return driven
        return tuple(v + b for v, b in zip(driven, self.bias, strict=True))


class PieceFlows(AbstractFlows):
    """z is the tuple of pieces."""

    def __init__(self, step, batch, grid):
        super().__init__(step, batch, grid)
        self.pieces = range(len(self.cell.couplings))
        self.kicks = len(self.pieces)
        self.names += self.pieces

    def begin(self, x, t):
        return x, None

    def end(self, state):
        return state[0]

    def _drift(self, part: Part, state):
        at = part.end if part.ascending else part.start
        drive = self.cell.drive(self.t + at * self.dt, self.step.inputs(0))
        h = part.coefficient * self.dt
        return tuple(z + self.snapped(h * v) for z, v in zip(state[0], drive, strict=True)), None

    def _damp(self, part: Part, state):
        h = part.coefficient * self.dt
        pairs = zip(state[0], self.cell.damping, strict=True)
        return tuple(self.cell.activation.relax(z, h * rate) for z, rate in pairs), None

    def kick(self, part: Part, state):
        c = part.name
        assert isinstance(c, int)
        h, pieces = part.coefficient * self.dt, list(state[0])
        kicked = pieces[c]
        if self.cell.in_turn:
            pieces[c], kicked = self._in_turn(c, h, part.ascending, kicked)
        self._push(c, h * self.cell.activation(kicked), pieces)
        return tuple(pieces), None

    def _push(self, c: int, pulses: Array, pieces: list[Array]) -> None:
        """What the pulses of piece `c` do to the others."""
        for d, row in enumerate(self.cell.couplings):
            if d != c and row[c] is not None:
                pieces[d] = pieces[d] + self.snapped(_coupled(row[c], pulses))

    def _in_turn(self, c: int, h: Array, ascending: bool, z: Array) -> tuple[Array, Array]:
        """Piece `c` after the kicks of its units among themselves, and where each was kicked."""
        within, units = self.cell.couplings[c][c], jnp.arange(z.shape[0])

        def kick(i, carry):
            z, kicked = carry
            here = units == (i if ascending else z.shape[0] - 1 - i)
            unit = jnp.sum(jnp.where(here, z, 0))
            pulse = h * self.cell.activation(unit)
            return z + pulse * (within @ here.astype(z.dtype)), jnp.where(here, unit, kicked)

        return jax.lax.fori_loop(0, z.shape[0], kick, (z, jnp.zeros_like(z)))

    def pull(self, part: Part, x: tuple, ct: tuple, wanted: Step) -> tuple:
        """The pieces before the kicks of one whose units go in turn, their cotangents l, and the
        gradient.

        A pulse p_i = h s(z_i) adds W[:, i] p_i to z. Hence its cotangent is e_i = W[:, i] . l, with
        the l_j of units that were kicked after it pulled back already, that of W[j, i] is l_j p_i,
        and l_i gains h s'(z_i) e_i.
        """
        c, (free, fixed) = part.name, eqx.partition(self.step, wanted)
        assert isinstance(c, int)
        back = part.reversed()
        before, within = list(x), self.cell.couplings[c][c]
        before[c], kicked = self._in_turn(c, back.coefficient * self.dt, back.ascending, x[c])
        others = [d for d in self.pieces if d != c]
        e = jnp.zeros_like(ct[c])
        for d in others:
            e = e + _coupled(self.cell.couplings[d][c].T, ct[d])

        def pulses(free, kicked):
            step = eqx.combine(free, fixed)
            return part.coefficient * step.dt * step.cell.activation(kicked)

        made, vjp = jax.vjp(pulses, free, kicked)
        self._push(c, -made, before)
        _, slope = vjp(jnp.ones_like(made))
        units = jnp.arange(len(e))

        def pull(i, carry):
            l, e = carry
            here = units == (len(e) - 1 - i if part.ascending else i)
            column = within @ here.astype(l.dtype)
            of_pulse = jnp.sum(jnp.where(here, e, 0) + column * l)
            return l + jnp.where(here, slope * of_pulse, 0), jnp.where(here, of_pulse, e)

        l, e = jax.lax.fori_loop(0, len(e), pull, (ct[c], e))
        gradient, _ = vjp(e)
        j, i = (jax.lax.broadcasted_iota(int, within.shape, axis) for axis in (0, 1))
        later = j > i if part.ascending else j < i
        of_pairs = [jnp.tensordot(v, made, 0) for v in (l, ct[c])]
        rows = [list(row) for row in gradient.cell.couplings]
        rows[c][c] = jnp.where(later, *of_pairs)
        for d in others:
            rows[d][c] = jnp.tensordot(ct[d], made, 0)
        rows = tuple(map(tuple, rows))
        gradient = eqx.tree_at(
            lambda g: g.cell.couplings, gradient, rows, is_leaf=lambda v: v is None
        )
        return tuple(before), (*ct[:c], l, *ct[c + 1 :]), gradient


def _coupled(coupling: Array, pulses: Array) -> Array:
    if coupling.ndim == 1:
        return coupling * pulses
    return jnp.matmul(coupling, pulses, precision=jax.lax.Precision.HIGHEST)
