"""What a sweep keeps of each trajectory: `jd.reductions.EnergyDrift()` and others.

A reduction is a function of one [`Trajectory`][jaxdyn.reductions.Trajectory] that returns an array,
or a dict of arrays; any function will do, and is compiled into the sweep. Those below also say what
their axes are called and what is in them.
"""

import abc
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
from jaxtyping import Array, Float

from .._analysis import lyapunov_spectrum
from .._cell import AbstractCell, evaluate_input, is_constant_input
from .._invariants import energy_drift
from .._simulate.checks import is_count
from .._types import Args


class Trajectory(eqx.Module):
    """One trajectory, as a reduction sees it.

    `cell`; `x0` (n,), where it starts, at the time `t0`; `times` (t,) and `states` (t, n), after
    every `every` steps of the sweep and at the end, `t1`; `args`, the input; `dt` and `solver`.
    """

    cell: AbstractCell
    x0: Float[Array, " n"]
    times: Float[Array, " t"]
    states: Float[Array, "t n"]
    args: Args
    solver: diffrax.AbstractSolver
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)


class About(NamedTuple):
    """The names of the axes of an array, and what it is. `time` and `unit` are those of states."""

    dims: tuple[str, ...]
    long_name: str
    units: str = "1"


class AbstractReduction(eqx.Module):
    """A reduction that says what it returns."""

    @abc.abstractmethod
    def __call__(self, trajectory: Trajectory) -> Any:
        """What is kept of a trajectory: an array, or a dict of arrays."""

    @abc.abstractmethod
    def about(self) -> dict[str, About]:
        """Of each array that `__call__` returns, or of "" if it is but one."""


class InitialState(AbstractReduction):
    """x(t0), (n,)."""

    def __call__(self, trajectory: Trajectory) -> Float[Array, " n"]:
        return trajectory.x0

    def about(self) -> dict[str, About]:
        return {"": About(("unit",), "state at t0")}


class FinalState(AbstractReduction):
    """x(t1), (n,)."""

    def __call__(self, trajectory: Trajectory) -> Float[Array, " n"]:
        return trajectory.states[-1]

    def about(self) -> dict[str, About]:
        return {"": About(("unit",), "state at t1")}


class States(AbstractReduction):
    """All states that are sampled, (t, n)."""

    def __call__(self, trajectory: Trajectory) -> Float[Array, "t n"]:
        return trajectory.states

    def about(self) -> dict[str, About]:
        return {"": About(("time", "unit"), "state")}


class EnergyDrift(AbstractReduction):
    """Worst |H - H(x0)| / |H(x0)| over the sampled states, as [`jaxdyn.energy_drift`][] has it."""

    def __call__(self, trajectory: Trajectory) -> Float[Array, ""]:
        return energy_drift(trajectory.cell, trajectory.x0, trajectory.states)

    def about(self) -> dict[str, About]:
        return {"": About((), "largest |H - H(x0)| / |H(x0)| over the samples")}


class _Later(eqx.Module):
    """An input as seen from the time `t0`."""

    u: Args
    t0: float = eqx.field(static=True)

    def __call__(self, t: Array) -> Array:
        return evaluate_input(self.u, t + self.t0)


class Exponents(AbstractReduction):
    """The `k` largest Lyapunov exponents, from [`jaxdyn.lyapunov_spectrum`][] over the time of the
    sweep, with its step, its solver and its input.

    **Arguments:** `k`, an integer >= 1; `every`, steps between two orthonormalisations.

    **Returns:** arrays `exponents` and `error`, both (k,).

    **Raises:** TypeError or ValueError that names the argument; ValueError in a sweep that goes
    backwards in time.
    """

    k: int = eqx.field(static=True)
    every: int = eqx.field(static=True)

    def __init__(self, k: Any = 1, every: Any = 10):
        for name, value in (("k", k), ("every", every)):
            if not is_count(value):
                raise TypeError(f"`{name}` must be an integer >= 1, got {value!r}.")
            if value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {value}.")
        self.k, self.every = int(k), int(every)

    def __call__(self, trajectory: Trajectory) -> dict[str, Float[Array, " k"]]:
        length = trajectory.t1 - trajectory.t0
        if length < 0:
            raise ValueError("`t1` of a sweep must be above `t0` for exponents; exchange them.")
        u = trajectory.args
        found = lyapunov_spectrum(
            trajectory.cell,
            trajectory.x0,
            length,
            trajectory.dt,
            self.k,
            solver=trajectory.solver,
            args=u if is_constant_input(u) else _Later(u, trajectory.t0),
            every=self.every,
            throw=False,
        )
        return {"exponents": found.exponents, "error": found.error}

    def about(self) -> dict[str, About]:
        unit = "1 / model time"
        return {
            "exponents": About(("exponent",), "Lyapunov exponents, the largest first", unit),
            "error": About(("exponent",), "error of the Lyapunov exponents", unit),
        }
