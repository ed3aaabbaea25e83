"""Splittings into exact shears: one unit, or one class of uncoupled units, moves at a time.

W_ii = 0 freezes x_i while it kicks the others through S_i(x_i), so its flow is the exact shear
x += h W[:, i] s(x_i): a Poisson map that leaves every Casimir alone and is undone by h -> -h. A
sweep over the units in ascending order is chi_h; in descending order it is the adjoint chi*_h. A
method is a list of coefficients a_1, a_2, ... for chi(a_1 h), chi*(a_2 h), chi(a_3 h), ...
(McLachlan and Quispel, Splitting methods, Acta Numerica 2002).

On the antisymmetric form y' = s(z), z = W y + b, the shear of unit i is y_i += h s(z_i). With
z carried along it is the same kick, so one routine serves both forms.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._cell import AbstractCell, AbstractInputs, AntisymmetricCell, is_constant_input
from .._types import Args
from .base import AbstractCellSolver, materialise
from .rk4 import rk4

# Units are kicked one after the other inside a block, which then moves all others in one matrix
# product. Of 1, 4, 8, 16, 32 at n = 64 and 256, 4 and 8 are level and the fastest
# (benchmarks/splitting_block.py).
BLOCK = 8
# Up to this many blocks a sweep is unrolled; beyond, it is a loop, to keep compile time flat.
MAX_UNROLLED_BLOCKS = 16
# Up to this many class kicks a composition is unrolled and neighbouring kicks are merged.
MAX_UNROLLED_KICKS = 64
# Up to this many classes a sweep goes class by class; compile time grows with their number.
MAX_CLASSES = 32
# Up to this many units, kicking single units beats the block sweep.
MAX_SINGLE_UNITS = 4
# A block sweep forms W: 2 GiB in float64 at this size.
MAX_FORMED_UNITS = 16_384


class AbstractSplitting(AbstractCellSolver):
    """A composition of shear sweeps, ascending and descending in turn.

    Serves PoissonCell and AntisymmetricCell for any activation, with bias and input (time moves
    with the drive, as a coordinate of its own, so driven cells keep the order) and with damping
    where the flow of x' = -s(x) has a closed form. An EnergyShell has no elementary split.

    Uncoupled units move at once: a bipartite or block operator takes two kicks a sweep (the
    leapfrog), a banded one bandwidth + 1. Units that are all coupled move one after the other.
    """

    coefficients: ClassVar[tuple[float, ...]]
    method_order: ClassVar[int]

    def order(self, terms) -> int:
        return self.method_order

    def check(self, cell: AbstractCell) -> None:
        name = type(self).__name__
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

    def prepare(self, cell: AbstractCell, dt: Float[Array, ""]) -> "AbstractCell | _BlockCell":
        cell = materialise(cell)
        return _BlockCell(cell) if _is_sequential(cell) else cell

    def advance(
        self,
        cell: "AbstractCell | _BlockCell",
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        return self._compose(cell, t, dt, x, args, lambda flow, *state: flow(args, *state))

    def advance_batch(
        self,
        cell: "AbstractCell | _BlockCell",
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, "n b"],
        inputs: AbstractInputs,
    ) -> Float[Array, "n b"]:
        # The loops are outside of the vmap: a loop under vmap moves the batch to the major axis,
        # which made long compositions and large cells four times slower.
        members = jnp.arange(x.shape[1])

        def each(flow, *state):
            in_axes = (0, *[-1] * len(state))
            mapped = jax.vmap(lambda i, *s: flow(inputs(i), *s), in_axes=in_axes, out_axes=-1)
            return mapped(members, *state)

        return self._compose(cell, t, dt, x, inputs(members[0]), each)

    def _compose(self, cell, t, dt, x, args, each):
        """The composition; `each(flow, state)` applies `flow(args, state)` to each trajectory."""
        if isinstance(cell, AbstractCell) and _is_sequential(cell):
            cell = self.prepare(cell, dt)
        in_blocks = isinstance(cell, _BlockCell)
        make: Any = _BlockParts if in_blocks else _ClassParts
        names, kicks = make(cell, dt, args).names, make(cell, dt, args).kicks
        count = cell.columns.shape[0] if in_blocks else 0

        def apply(state, name, coefficient, ascending):
            if count > MAX_UNROLLED_BLOCKS and name == _SWEEP:
                return sweep(state, coefficient, ascending)
            return each(
                lambda u, s: make(cell, dt, u).apply(name, coefficient, ascending, s), state
            )

        def sweep(state, coefficient, ascending):
            def body(z, i):
                return each(
                    lambda u, z, y: make(cell, dt, u).block(coefficient * dt, ascending, i, z, y),
                    z,
                    y,
                )

            t, z, y = state
            z, pulse = jax.lax.scan(body, z, jnp.arange(count), reverse=not ascending)
            return t, z, y if pulse is None else y + pulse.reshape(y.shape)

        state = each(lambda u, x: make(cell, dt, u).start(t, x), x)
        if kicks * len(self.coefficients) <= MAX_UNROLLED_KICKS or len(self.coefficients) == 2:
            for part in _merged(self.coefficients, names):
                state = apply(state, *part)
        else:

            def pair(state, ab):
                for name in names:
                    state = apply(state, name, ab[0], True)
                for name in reversed(names):
                    state = apply(state, name, ab[1], False)
                return state, None

            ab = jnp.asarray(np.reshape(self.coefficients, (-1, 2)), x.dtype)
            state, _ = jax.lax.scan(pair, state, ab)
        return each(lambda u, s: make(cell, dt, u).finish(s), state)


def _is_sequential(cell: AbstractCell) -> bool:
    """Whether the units go one after the other, in blocks, and not class by class.

    Classes of few units each are no gain, and every class kick is a piece of program to compile.
    """
    n, classes = cell.size, len(cell.operator.coloring())
    return n > MAX_SINGLE_UNITS and (classes == n or classes > MAX_CLASSES)


_SWEEP = ("sweep",)
_MERGEABLE = ("damp", "kick")


def _merged(coefficients, names):
    """The parts of chi(a_1) chi*(a_2) chi(a_3) ... in order, equal neighbours made into one."""
    out: list[tuple[tuple, float, bool]] = []
    for i, a in enumerate(coefficients):
        ascending = i % 2 == 0
        for name in names if ascending else reversed(names):
            if out and out[-1][0] == name and name[0] in _MERGEABLE:
                out[-1] = (name, out[-1][1] + a, ascending)
            else:
                out.append((name, a, ascending))
    return out


class _Parts(abc.ABC):
    """The elementary flows of one cell over one step, each for a fraction of the step.

    State: (t, z, y). Poisson form: z is the state and y is None. Antisymmetric form: y is the
    state and z = W y + U u(t) + b goes along with it.
    """

    kicks: int
    """How many elementary kicks a sweep takes."""

    def __init__(self, cell: AbstractCell, dt: Array, args: Args):
        self.cell, self.dt, self.args = cell, dt, args
        self.antisymmetric = isinstance(cell, AntisymmetricCell)
        self.names: list[tuple] = []
        moves_with_time = args is not None and not is_constant_input(args)
        if moves_with_time or (not self.antisymmetric and cell.drive(0.0, args) is not None):
            self.names.append(("drift",))
        if cell.damping is not None and not self.antisymmetric:
            self.names.append(("damp",))

    @abc.abstractmethod
    def start(self, t: Array, x: Array) -> Any:
        """The state at (t, x)."""

    @abc.abstractmethod
    def finish(self, state: Any) -> Array:
        """x of a state."""

    @abc.abstractmethod
    def kick(self, name: tuple, h: Array, ascending: bool, state: Any) -> Any:
        """The shears of the part `name`, over time `h`."""

    def pad(self, x: Array) -> Array:
        """`x` (n,) in the length of z."""
        return x

    def drive(self, t: Array) -> Array:
        drive = self.cell.drive(t, self.args)
        assert drive is not None
        return drive

    def preactivation(self, t: Array, y: Array) -> Array:
        assert isinstance(self.cell, AntisymmetricCell)
        return self.cell.preactivation(t, y, self.args)

    def apply(self, name, coefficient, ascending, state):
        h = coefficient * self.dt
        if name[0] == "drift":
            return self.drift(h, ascending, state)
        if name[0] == "damp":
            t, z, y = state
            damping = self.cell.damping
            assert damping is not None
            tau = h * (self.pad(damping) if damping.ndim else damping)
            return t, self.cell.activation.relax(z, tau), y
        return self.kick(name, h, ascending, state)

    def drift(self, h, ascending, state):
        """Time moves, and the drive with it. The adjoint drives first and moves time after."""
        t, z, y = state
        t1 = t + h
        if self.antisymmetric:
            change = self.drive(t1) - self.drive(t)
        else:
            change = h * self.drive(t1 if ascending else t)
        return t1, z + self.pad(change), y

    def pulse(self, h, z, y, damping):
        """What kicked units add to the others, over time h: the integral of s at frozen z."""
        s = self.cell.activation
        if not self.antisymmetric or damping is None:
            return h * s(z)
        # y_i' = s(z_i - damping y_i) alone: v = z_i - damping y_i relaxes as v' = -damping s(v),
        # so y_i gains (v - relax(v)) / damping. That cancels for a weak damping, where a
        # Runge-Kutta step of this scalar equation is exact to rounding instead.
        v = z - damping * y
        weak = jnp.abs(damping * h) < 4 * jnp.finfo(v.dtype).eps ** 0.25
        rate = jnp.where(weak, 1.0, damping)
        exact = (v - s.relax(v, rate * h)) / rate
        return jnp.where(weak, rk4(lambda _, g: h * s(v - damping * g), h, h, 0.0 * v), exact)


class _ClassParts(_Parts):
    """Whole classes of uncoupled units at once. y is a tuple of the classes' own parts."""

    def __init__(self, cell, dt, args):
        super().__init__(cell, dt, args)
        self.classes = cell.operator.coloring()
        self.kicks = len(self.classes)
        self.names += [("kick", c) for c in range(self.kicks)]

    def _damping_of(self, units) -> Array | None:
        if self.cell.damping is None or self.cell.damping.ndim == 0:
            return self.cell.damping
        return self.cell.damping[units]

    def start(self, t, x):
        if not self.antisymmetric:
            return t, x, None
        return t, self.preactivation(t, x), tuple(x[c] for c in self.classes)

    def finish(self, state):
        _, z, y = state
        if not self.antisymmetric:
            return z
        order = np.concatenate([np.arange(self.cell.size)[c] for c in self.classes])
        return jnp.concatenate(y)[np.argsort(order)]

    def kick(self, name, h, ascending, state):
        t, z, y = state
        c = name[1]
        units = self.classes[c]
        pulse = self.pulse(h, z[units], None if y is None else y[c], self._damping_of(units))
        if y is not None:
            y = (*y[:c], y[c] + pulse, *y[c + 1 :])
        return t, z + self.cell.operator.color_mv(c, pulse), y


class _BlockCell(eqx.Module):
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


class _BlockParts(_Parts):
    """Single units, in blocks: sequential inside a block, one product W[:, block] for the rest.

    z and y are padded to whole blocks.
    """

    kicks = MAX_UNROLLED_KICKS  # so that a long composition is a loop over pairs of sweeps

    def __init__(self, blocks: _BlockCell, dt, args):
        super().__init__(blocks.cell, dt, args)
        self.blocks = blocks
        self.names.append(_SWEEP)
        self.padded = blocks.columns.shape[1]

    def pad(self, x):
        return jnp.pad(x, (0, self.padded - self.cell.size))

    def start(self, t, x):
        if not self.antisymmetric:
            return t, self.pad(x), None
        return t, self.pad(self.preactivation(t, x)), self.pad(x)

    def finish(self, state):
        _, z, y = state
        return (z if y is None else y)[: self.cell.size]

    def kick(self, name, h, ascending, state):
        t, z, y = state
        k = self.padded // BLOCK
        pulses: list = [None] * k
        for i in range(k) if ascending else reversed(range(k)):
            z, pulses[i] = self.block(h, ascending, i, z, y)
        return t, z, None if y is None else y + jnp.concatenate(pulses)

    def block(self, h, ascending, i, z, y):
        """z after the kicks of block `i`, and their pulses (None in the Poisson form)."""
        damping = self.cell.damping if self.antisymmetric else None
        if damping is not None:
            damping = self.pad(jnp.broadcast_to(damping, (self.cell.size,)))
        units = [
            None if v is None else jax.lax.dynamic_slice_in_dim(v, i * BLOCK, BLOCK)
            for v in (z, y, damping)
        ]
        pulses = self._pulses(h, ascending, self.blocks.within[i], *units)
        columns = self.blocks.columns[i]
        # One pass over z. As one product with `columns` it takes three and half the speed; products
        # with a single column become broadcasts, and leave the batch in the minor axis.
        z = z + sum(
            (columns[:, j : j + 1] @ p for j, p in enumerate(pulses)), start=jnp.zeros((), z.dtype)
        )
        return z, None if y is None else jnp.concatenate(pulses)

    def _pulses(self, h, ascending, within, z, y, damping):
        """Pulses of the units of one block, each seeing the pulses of those before it."""
        # Slices of length 1, not scalars: under vmap they keep the batch in the minor axis.
        own = [z[i : i + 1] for i in range(BLOCK)]
        pulse: list = [None] * BLOCK
        order = list(range(BLOCK)) if ascending else list(reversed(range(BLOCK)))
        for position, i in enumerate(order):
            yi, di = (None if v is None else v[i : i + 1] for v in (y, damping))
            # Without the barrier XLA works every earlier pulse out again for each later one.
            pulse[i] = jax.lax.optimization_barrier(self.pulse(h, own[i], yi, di))
            for j in order[position + 1 :]:
                own[j] = own[j] + within[j, i] * pulse[i]
        return pulse
