"""The elementary flows a splitting is made of.

They act on a state (z, y) of one trajectory or of a batch in the minor axis. Poisson form: z is the
state and y is None. Antisymmetric form: y is the state and z = W y + U u(t) + b goes along with it.
"""

import abc
import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._cell import AntisymmetricCell, is_constant_input
from .base import Step
from .rk4 import rk4

DRIFT, DAMP, SWEEP = "drift", "damp", "sweep"


class Part(NamedTuple):
    """An elementary flow `name` over `coefficient` steps, from `start` steps in to `end`.

    Both ends are kept, so that a part and its reverse agree on them to the last bit.
    """

    name: str | int
    coefficient: Any
    start: Any
    end: Any
    ascending: bool
    pair: Any
    """The number of the pair of sweeps it belongs to."""

    def reversed(self) -> "Part":
        """The part that undoes this one."""
        return Part(
            self.name, -self.coefficient, self.end, self.start, not self.ascending, self.pair
        )


class AbstractFlows(abc.ABC):
    """The elementary flows of one cell over one step."""

    names: list[str | int]
    """The parts of a sweep in ascending order; a splitting takes them in turn."""
    kicks: int
    """How many pieces of program a sweep takes."""

    def __init__(self, step: Step, batch: int | None, grid: float | None):
        self.step, self.batch, self.grid = step, batch, grid
        self.cell, self.t, self.dt = step.cell, step.t, step.dt
        self.antisymmetric = isinstance(self.cell, AntisymmetricCell)
        cell, args = self.cell, step.inputs(0)
        self.names = []
        moves_with_time = args is not None and not is_constant_input(args)
        if moves_with_time or (not self.antisymmetric and cell.drive(0.0, args) is not None):
            self.names.append(DRIFT)
        if cell.damping is not None and not self.antisymmetric:
            self.names.append(DAMP)

    @abc.abstractmethod
    def begin(self, x: Any, t: Array) -> Any:
        """The state at `x` and `t`."""

    @abc.abstractmethod
    def end(self, state: Any) -> Any:
        """x of a state."""

    @abc.abstractmethod
    def kick(self, part: Part, state: Any) -> Any:
        """The state after the shears of `part`."""

    def each(self, fn: Callable, *arrays: Any) -> Any:
        """`fn(u, *arrays)` of the one trajectory, or of each of a batch, which sees the input u.

        It is applied to one flow at a time, so that loops stay outside of the vmap: a loop under
        vmap moves the batch to the major axis, which made large cells four times slower.
        """
        inputs = self.step.inputs
        if self.batch is None:
            return fn(inputs(0), *arrays)
        in_axes = (0, *[-1] * len(arrays))
        mapped = jax.vmap(lambda i, *a: fn(inputs(i), *a), in_axes=in_axes, out_axes=-1)
        return mapped(jnp.arange(self.batch), *arrays)

    def pad(self, x: Array) -> Array:
        """`x` (n,) in the length of z."""
        return x

    def apply(self, part: Part, state: Any) -> Any:
        if part.name == DRIFT:
            return self._drift(part, state)
        if part.name == DAMP:
            return self._damp(part, state)
        return self.kick(part, state)

    def preactivation(self, y: Array, t: Array) -> Array:
        """W y + U u(t) + b of a batch or one trajectory."""
        cell = self.cell
        assert isinstance(cell, AntisymmetricCell)
        return self.each(lambda u, y: cell.preactivation(t, y, u), y)

    def snapped(self, change: Array) -> Array:
        """`change` in whole multiples of the grid, if there is one: they add up exactly."""
        return change if self.grid is None else snap(change, self.grid)

    def _drift(self, part: Part, state: Any) -> Any:
        """The drive over the part. The adjoint takes it at its start and not at its end."""
        z, y = state
        begin, end = self.t + part.start * self.dt, self.t + part.end * self.dt

        def moved(u, z):
            def drive(t):
                drive = self.cell.drive(t, u)
                assert drive is not None
                return drive

            if self.antisymmetric:
                change = drive(end) - drive(begin)
            else:
                change = part.coefficient * self.dt * drive(end if part.ascending else begin)
            return z + self.snapped(self.pad(change))

        return self.each(moved, z), y

    def _damp(self, part: Part, state: Any) -> Any:
        z, y = state
        damping = self.cell.damping
        assert damping is not None
        tau = part.coefficient * self.dt * (self.pad(damping) if damping.ndim else damping)
        return self.each(lambda u, z: self.cell.activation.relax(z, tau), z), y

    def scale(self, h: Array) -> Array | float:
        """What turns the kicks of a part of length `h` into pulses."""
        return 1.0 if self.antisymmetric and self.cell.damping is not None else h

    def kick_of(self, h, z, y, damping):
        """The kick of units at frozen z. Times `scale(h)`, the integral of s, it is a pulse: what
        they add to the others, over time h."""
        s = self.cell.activation
        if not self.antisymmetric or damping is None:
            return s(z)
        # y_i' = s(z_i - damping y_i) alone: v = z_i - damping y_i relaxes as v' = -damping s(v),
        # so y_i gains (v - relax(v)) / damping. That cancels for a weak damping, where a
        # Runge-Kutta step of this scalar equation is exact to rounding instead.
        v = z - damping * y
        weak = jnp.abs(damping * h) < 4 * jnp.finfo(v.dtype).eps ** 0.25
        rate = jnp.where(weak, 1.0, damping)
        exact = (v - s.relax(v, rate * h)) / rate
        return jnp.where(weak, rk4(lambda _, g: h * s(v - damping * g), h, h, 0.0 * v), exact)


@ft.partial(jax.custom_jvp, nondiff_argnums=(1,))
def snap(change: Array, grid: float) -> Array:
    """`change` in whole multiples of `grid`."""
    return jnp.round(change / grid) * grid


@snap.defjvp
def _(grid, primals, tangents):
    # Straight through: what is differentiated is the flow, not the rounding.
    return snap(*primals, grid), tangents[0]
