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
        self.kicks = len(self.cell.couplings)
        self.names += range(self.kicks)

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
        if self.cell.in_turn:
            pieces[c], pulses = self._in_turn(c, h, part.ascending, pieces[c])
        else:
            pulses = h * self.cell.activation(pieces[c])
        for d, row in enumerate(self.cell.couplings):
            if d != c and row[c] is not None:
                pieces[d] = pieces[d] + self.snapped(_coupled(row[c], pulses))
        return tuple(pieces), None

    def _in_turn(self, c: int, h: Array, ascending: bool, z: Array) -> tuple[Array, Array]:
        """Piece `c` after the kicks of its units among themselves; their pulses."""
        within, units = self.cell.couplings[c][c], jnp.arange(z.shape[0])

        def kick(i, carry):
            z, pulses = carry
            here = units == (i if ascending else z.shape[0] - 1 - i)
            pulse = h * self.cell.activation(jnp.sum(jnp.where(here, z, 0)))
            z = z + pulse * (within @ here.astype(z.dtype))
            return z, jnp.where(here, pulse, pulses)

        return jax.lax.fori_loop(0, z.shape[0], kick, (z, jnp.zeros_like(z)))


def _coupled(coupling: Array, pulses: Array) -> Array:
    if coupling.ndim == 1:
        return coupling * pulses
    return jnp.matmul(coupling, pulses, precision=jax.lax.Precision.HIGHEST)
