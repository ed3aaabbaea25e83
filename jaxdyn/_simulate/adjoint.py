"""What a user says of gradients that are taken by undoing the steps, and what is refused."""

from typing import Any

import diffrax
import equinox as eqx

from .._cell import AbstractCell, AbstractVectorField
from .checks import check_number, is_count


class ReversibleAdjoint(diffrax.AbstractAdjoint):
    r"""Reverse-mode gradients by undoing the steps: memory, but for saves, independent of their
    number.

    Going backwards, each step is undone from its end state and differentiated there. A step of a
    splitting ([`jaxdyn.Strang`][] and its compositions) is undone exactly, but for rounding, one
    elementary flow after the other: with the forward solve, a gradient takes four times the
    operations of the solve alone. [`jaxdyn.Taylor`][] is undone by a step of -dt, as exactly as
    its truncation error allows, [`jaxdyn.DiscreteGradient`][] and [`jaxdyn.ImplicitMidpoint`][]
    as exactly as they are solved.

    What error this leaves grows with the length of a run, slowly on a regular orbit and
    exponentially on a chaotic one. It is watched: the states that come back are compared with
    those that were kept, x0 among them, and a gradient that rests on states further off than
    `error` is refused. Keep more states then (`checkpoint_every`), or take a splitting on a grid
    (`jaxdyn.Strang(grid=2.0**-36)` in float64), which is undone bit for bit.

    For `jaxdyn.simulate(..., adjoint=)` with a fixed step. Gradients with respect to everything
    but save times; reverse mode only.

    **Arguments:**

    - `checkpoint_every`: keep the state of every so many steps, an integer >= 1; None keeps none
      but x0. Memory: (number of steps / checkpoint_every) states.
    - `error`: how far a state that comes back may be off, relative to 1 + its largest entry,
      in every trajectory.
      Default: 1e-6 for float64, 1e-2 for float32.

    **Raises:** TypeError or ValueError that names the argument; a RuntimeError while the gradient
    is taken when the error is missed.

    See [`jaxdyn.reversal_interval`][] for the `checkpoint_every` that meets an error.
    """

    checkpoint_every: int | None = eqx.field(static=True)
    error: float | None = eqx.field(static=True)

    def __init__(self, checkpoint_every: int | None = None, error: float | None = None):
        if checkpoint_every is not None:
            if not is_count(checkpoint_every):
                raise TypeError(
                    "`checkpoint_every` must be an integer >= 1 (a number of steps) or None, got "
                    f"{checkpoint_every!r}."
                )
            if checkpoint_every < 1:
                raise ValueError(
                    f"`checkpoint_every` must be >= 1, got {checkpoint_every}; None keeps no state "
                    "but x0."
                )
            checkpoint_every = int(checkpoint_every)
        if error is not None:
            error = float(check_number("error", error, "a number > 0"))
            if error <= 0:
                raise ValueError(
                    f"`error` must be > 0, got {error}; None takes the default of x0's precision."
                )
        self.checkpoint_every = checkpoint_every
        self.error = error

    def loop(self, **kwargs):
        raise ValueError(
            "`adjoint=jaxdyn.ReversibleAdjoint()` is for jaxdyn.simulate with a fixed step; in "
            "diffrax.diffeqsolve use diffrax.RecursiveCheckpointAdjoint()."
        )


def check_reversible(
    adjoint: ReversibleAdjoint, solver: Any, cell: AbstractVectorField, args: Any
) -> None:
    """Refuses what cannot be run backwards."""
    cure = "leave `adjoint` out, or use adjoint=diffrax.RecursiveCheckpointAdjoint()."
    name = type(solver).__name__
    if not getattr(solver, "reversible", False):
        raise ValueError(
            f"`adjoint=jaxdyn.ReversibleAdjoint` undoes the steps of the solver, and a step of "
            f"{name} has no inverse at hand; use solver=jaxdyn.Strang(), jaxdyn.BlanesMoan4() or "
            f"jaxdyn.Taylor(), or {cure}"
        )
    assert isinstance(cell, AbstractCell)  # others have no reversible solver
    if cell.damping is not None or getattr(cell, "regulator", None) is not None:
        what = "damping" if cell.damping is not None else "an EnergyShell"
        raise ValueError(
            f"`adjoint=jaxdyn.ReversibleAdjoint` runs the orbit backwards, and `cell` has {what}: "
            f"backwards, what dissipates amplifies every rounding error exponentially; {cure}"
        )
    if isinstance(args, diffrax.AbstractBrownianPath):
        raise ValueError(
            "`adjoint=jaxdyn.ReversibleAdjoint` needs an input that can be run backwards, and "
            f"`args` is a Brownian path; {cure}"
        )
