"""Splittings into exact shears: one unit, or one class of uncoupled units, moves at a time.

W_ii = 0 freezes x_i while it kicks the others through S_i(x_i), so its flow is the exact shear
x += h W[:, i] s(x_i): a Poisson map that leaves every Casimir alone and is undone by h -> -h. A
sweep over the units in ascending order is chi_h; in descending order it is the adjoint chi*_h. A
method is a list of coefficients a_1, a_2, ... for chi(a_1 h), chi*(a_2 h), chi(a_3 h), ...
(McLachlan and Quispel, Splitting methods, Acta Numerica 2002).

On the antisymmetric form y' = s(z), z = W y + b, the shear of unit i is y_i += h s(z_i). With
z carried along it is the same kick, so one routine serves both forms.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell, AbstractInputs, PoissonCell, SharedInput
from .._skew import FormedSkew
from .._types import Args
from .base import AbstractCellSolver, Step, materialise
from .blocks import BlockCell, BlockFlows, Memo
from .classes import ClassFlows
from .flows import DRIFT, SWEEP, AbstractFlows, Part, snap
from .pieces import LEAST_PIECE, PieceCell, PieceFlows

# Up to this many pieces of program a composition is unrolled and neighbouring kicks are merged.
MAX_UNROLLED_KICKS = 64
# Up to this many classes a sweep goes class by class; compile time grows with their number.
MAX_CLASSES = 32
# Up to this many units, kicking single units beats the block sweep.
MAX_SINGLE_UNITS = 4
# Notes of about so many numbers are kept at a time while steps are undone.
MEMO_SIZE = 2**15
# So many trajectories at a time keep a sweep in cache (benchmarks/tiles.py).
TILE = 64
# A block sweep forms W: 2 GiB in float64 at this size.
MAX_FORMED_UNITS = 16_384


class AbstractSplitting(AbstractCellSolver):
    """A composition of shear sweeps, ascending and descending in turn.

    Serves PoissonCell and AntisymmetricCell for any activation, with bias and input (time moves
    with the drive, as a coordinate of its own, so driven cells keep the order) and with damping
    where the flow of x' = -s(x) has a closed form. An EnergyShell has no elementary split.

    **Arguments:**

    - `grid`: None, or a power of two such as 2.0**-36: states are rounded to its multiples, and so
      is every change of them. Such numbers add up without rounding, so that a step of -dt undoes a
      step of dt bit for bit, for ever, as long as all |x| < 2^53 grid (float64) or 2^24 grid
      (float32, for which 2.0**-12 fits). The solution changes by about `grid` a kick. For a
      PoissonCell only. With an input that depends on time, [`jaxdyn.ReversibleAdjoint`][] undoes
      it as exactly; a step of -dt sees the input at times that are rounded otherwise.

    **Raises:** ValueError when `grid` is not a power of two.

    Uncoupled units move at once: a bipartite or block operator takes two kicks a sweep (the
    leapfrog), a banded one bandwidth + 1. Units that are all coupled move one after the other.
    """

    reversible: ClassVar = True
    coefficients: ClassVar[tuple[float, ...]]
    method_order: ClassVar[int]

    grid: float | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        if self.grid is None:
            return
        number = isinstance(self.grid, int | float) and not isinstance(self.grid, bool)
        if not number or math.frexp(self.grid)[0] != 0.5 or not math.isfinite(self.grid):
            raise ValueError(
                f"`grid` must be a power of two such as 2.0**-36, or None, got {self.grid!r}: only "
                "multiples of those add up without rounding."
            )

    def order(self, terms) -> int:
        return self.method_order

    def check(self, cell: AbstractCell) -> None:
        name = type(self).__name__
        if self.grid is not None and not isinstance(cell, PoissonCell):
            raise ValueError(
                f"{name} with a `grid` serves a PoissonCell, got {type(cell).__name__}, whose "
                "z = W y + b does not stay on the grid; leave `grid` out, or simulate z as a "
                "PoissonCell."
            )
        if getattr(cell, "regulator", None) is not None:
            raise ValueError(
                f"{name} cannot split a cell with an EnergyShell regulator, which has no "
                "elementary flow; use solver=jaxdyn.RK4(), jaxdyn.Taylor() or a diffrax solver."
            )
        if cell.damping is not None and not cell.activation.relaxes:
            raise ValueError(
                f"{name} needs the exact flow of x' = -s(x) to serve a damped cell, and "
                f"{type(cell.activation).__name__} has none in closed form; use "
                "solver=jaxdyn.RK4(), jaxdyn.DiscreteGradient() or a diffrax solver."
            )
        if _is_sequential(cell) and cell.size > MAX_FORMED_UNITS:
            raise ValueError(
                f"{name} would form W with {cell.size} x {cell.size} entries (limit "
                f"{MAX_FORMED_UNITS} units) to sweep over units that need more than {MAX_CLASSES} "
                "colours; use solver=jaxdyn.RK4() or jaxdyn.Taylor(), or an operator with less "
                "coupling."
            )

    def tile(self, cell: AbstractCell, itemsize: int, shared: bool) -> int | None:
        return TILE

    def form(self, cell: AbstractCell) -> AbstractCell:
        cell = materialise(cell)
        if not _is_sequential(cell) or isinstance(cell.operator, FormedSkew):
            return cell
        return eqx.tree_at(lambda c: c.operator, cell, FormedSkew(cell.operator.as_matrix()))

    def prepare(self, cell: AbstractCell, dt: Float[Array, ""]) -> "AbstractCell | BlockCell":
        cell = self.form(cell)
        return BlockCell(cell) if _is_sequential(cell) else cell

    def advance(
        self,
        cell: "AbstractCell | BlockCell",
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        return self._advance(cell, t, dt, x, SharedInput(args), None)

    def advance_batch(
        self,
        cell: "AbstractCell | BlockCell",
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, "n b"],
        inputs: AbstractInputs,
    ) -> Float[Array, "n b"]:
        return self._advance(cell, t, dt, x, inputs, x.shape[1])

    def advance_lane(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        # Blocks would be padded, and loops over pairs of sweeps would hide kicks that merge.
        flows = ClassFlows(Step(cell, SharedInput(args), t, dt), None, self.grid)
        state = flows.begin(x, t)
        for part in _merged(self.coefficients, flows.names):
            state = flows.apply(part, state)
        return flows.end(state)

    def pieces(self, cell: AbstractCell) -> Sequence[Any] | None:
        if not isinstance(cell, PoissonCell) or (self.grid is not None and _is_sequential(cell)):
            return None
        if not _is_sequential(cell):
            return cell.operator.coloring()
        half = max(LEAST_PIECE, 1 << (cell.size - 1).bit_length() >> 1)
        return [slice(i, i + half) for i in range(0, cell.size, half)]

    def cut(self, cell: AbstractCell) -> PieceCell:
        places = self.pieces(cell)
        assert places is not None and isinstance(cell, PoissonCell)
        return PieceCell(cell, places, in_turn=_is_sequential(cell))

    def advance_pieces(
        self,
        cut: PieceCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: tuple,
        args: Args,
    ) -> tuple:
        flows = PieceFlows(Step(cut, SharedInput(args), t, dt), None, self.grid)
        state = flows.begin(x, t)
        for part in _merged(self.coefficients, flows.names, merge=not cut.in_turn):
            state = flows.apply(part, state)
        return flows.end(state)

    def undo_pieces(self, step: Step, x: tuple, ct: tuple, wanted: Step) -> tuple:
        def make(step):
            return PieceFlows(step, None, self.grid)

        flows, (free, fixed) = make(step), eqx.partition(step, wanted)
        gradient = jax.tree.map(jnp.zeros_like, free)
        for part in reversed(_merged(self.coefficients, flows.names, not step.cell.in_turn)):
            if step.cell.in_turn and part.name in flows.pieces:
                x, ct, change = flows.pull(part, x, ct, wanted)
            else:

                def forward(free, x, part=part):
                    return make(eqx.combine(free, fixed)).apply(part, (x, None))[0]

                x, _ = flows.apply(part.reversed(), (x, None))
                change, ct = jax.vjp(forward, free, x)[1](ct)
            gradient = jax.tree.map(jnp.add, gradient, change)
        return x, ct, gradient

    def _advance(self, cell, t, dt, x, inputs, batch):
        if isinstance(cell, AbstractCell) and _is_sequential(cell):
            cell = self.prepare(cell, dt)
        flows = self._flows(cell, batch)(Step(_plain(cell), inputs, t, dt))
        state = flows.begin(self.start(x), t)
        state = self._fold(flows, flows.apply, state, x.dtype)
        return flows.end(state)

    def start(self, x):
        if self.grid is None:
            return x
        digits = jnp.finfo(x.dtype).nmant + 1
        if self.grid * 2.0**digits < 16 or self.grid < float(jnp.finfo(x.dtype).tiny):
            raise ValueError(
                f"`grid` = {self.grid:g} leaves {x.dtype} no room for states beyond "
                f"{self.grid * 2.0**digits:g}; take 2.0**-{digits - 12} or a coarser one."
            )
        return snap(x, self.grid)

    def memo_steps(self, cell: "AbstractCell | BlockCell", batch: int) -> int:
        return max(1, MEMO_SIZE // (_plain(cell).size * batch))

    def open_memo(self, prepared, step, x, ct, steps, wanted):
        flows = self._flows(prepared, x.shape[1])(step)
        if not isinstance(flows, BlockFlows):
            return super().open_memo(prepared, step, x, ct, steps, wanted)
        _, to_end = jax.vjp(flows.end, flows.begin(x, step.t))
        return flows.memo(to_end(ct)[0], wanted, steps * len(self.coefficients) // 2)

    def undo_batch(self, prepared, step, x, ct, memo, place, wanted):
        # Each elementary flow is undone and differentiated by itself: four times the operations of
        # a step, where a step back and the derivative of a whole step would take five.
        make = self._flows(prepared, x.shape[1])
        flows = make(step)
        free, fixed = eqx.partition(step, wanted)

        def pull(fn, state, ct, memo):
            _, vjp = jax.vjp(lambda f, s: fn(make(eqx.combine(f, fixed)), s), free, state)
            gradient, ct = vjp(ct)
            return ct, _noted(memo, gradient)

        def back(part, carry):
            state, ct, memo = carry
            if isinstance(flows, BlockFlows) and part.name == SWEEP:
                slot = place * (len(self.coefficients) // 2) + part.pair
                return flows.pull(part, state, ct, memo, slot, wanted)
            state = flows.apply(part.reversed(), state)
            return state, *pull(lambda f, s: f.apply(part, s), state, ct, memo)

        state = flows.begin(x, step.t + step.dt)
        _, to_end = jax.vjp(flows.end, state)
        (ct,) = to_end(ct)
        if isinstance(flows, BlockFlows):
            memo = flows.renewed(memo, ct)
        state, ct, memo = self._fold(flows, back, (state, ct, memo), x.dtype, reverse=True)
        x = flows.end(state)
        return x, *pull(lambda f, x: f.begin(x, f.t), x, ct, memo)

    def close_memo(self, memo):
        return memo.total() if isinstance(memo, Memo) else memo

    def _flows(self, cell: "AbstractCell | BlockCell", batch) -> Callable[[Step], AbstractFlows]:
        if isinstance(cell, BlockCell):
            return lambda step: BlockFlows(step, batch, self.grid, cell)
        return lambda step: ClassFlows(step, batch, self.grid)

    def _fold(self, flows, visit, carry, dtype, reverse=False):
        """`visit(part, carry)` for all parts of a step in order, or in the reverse order."""
        names, a = flows.names, self.coefficients
        if flows.kicks * len(a) <= MAX_UNROLLED_KICKS or len(a) == 2:
            parts = _merged(a, names)
            for part in reversed(parts) if reverse else parts:
                carry = visit(part, carry)
            return carry

        def pair(carry, rows):
            i, (a, b), (start, middle, end) = rows
            parts = [Part(name, a, start, middle, True, i) for name in names]
            parts += [Part(name, b, middle, end, False, i) for name in reversed(names)]
            for part in reversed(parts) if reverse else parts:
                carry = visit(part, carry)
            return carry, None

        ends = np.cumsum((0.0, *a))
        times = np.stack([ends[:-1:2], ends[1::2], ends[2::2]], axis=1)
        rows = [jnp.asarray(v, dtype) for v in (np.reshape(a, (-1, 2)), times)]
        return jax.lax.scan(pair, carry, [jnp.arange(len(a) // 2), *rows], reverse=reverse)[0]


def _plain(cell: "AbstractCell | BlockCell") -> AbstractCell:
    return cell.cell if isinstance(cell, BlockCell) else cell


def _noted(memo, gradient: Step):
    """`memo` with one more gradient in it."""
    total = memo.gradient if isinstance(memo, Memo) else memo
    total = jax.tree.map(jnp.add, total, gradient)
    return eqx.tree_at(lambda m: m.gradient, memo, total) if isinstance(memo, Memo) else total


def _is_sequential(cell: AbstractCell) -> bool:
    """Whether the units go one after the other, in blocks, and not class by class.

    Classes of few units each are no gain, and every class kick is a piece of program to compile.
    """
    n, classes = cell.size, len(cell.operator.coloring())
    return n > MAX_SINGLE_UNITS and (classes == n or classes > MAX_CLASSES)


def _merged(coefficients: tuple[float, ...], names: list, merge: bool = True) -> list[Part]:
    """The parts of chi(a_1) chi*(a_2) chi(a_3) ... in order, equal neighbours made into one if
    they `merge`."""
    out: list[Part] = []
    start = 0.0
    for i, a in enumerate(coefficients):
        ascending = i % 2 == 0
        for name in names if ascending else reversed(names):
            if merge and out and out[-1].name == name and name not in (DRIFT, SWEEP):
                out[-1] = out[-1]._replace(coefficient=out[-1].coefficient + a, end=start + a)
            else:
                out.append(Part(name, a, start, start + a, ascending, i // 2))
        start += a
    return out
