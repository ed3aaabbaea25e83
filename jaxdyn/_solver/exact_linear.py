from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from .._activation import Identity
from .._cell import AbstractCell, is_constant_input
from .._types import Args
from .base import AbstractCellSolver


class _Propagator(eqx.Module):
    """x -> P x + F d, the flow of x' = A x + d over one step."""

    cell: AbstractCell
    propagator: Float[Array, "n n"]
    forcing: Float[Array, "n n"] | None


class ExactLinear(AbstractCellSolver):
    r"""The exact flow x -> expm(h W) x of linear networks (activation Identity), for any h.

    With damping, bias and a constant input it is the exact flow of x' = A x + d, A = W - damping.
    `simulate` forms the dense matrix exponential once for a fixed-step solve, and a step is one
    matrix product; inside plain diffrax every step forms it.
    """

    explicit: ClassVar = False

    def order(self, terms) -> None:
        return None

    def check(self, cell: AbstractCell) -> None:
        if not isinstance(cell.activation, Identity) or getattr(cell, "regulator", None):
            raise ValueError(
                "ExactLinear serves linear cells only (activation jaxdyn.Identity(), no "
                f"regulator), got {type(cell.activation).__name__}; use solver=jaxdyn.Strang(), "
                "jaxdyn.Taylor() or a diffrax solver."
            )

    def prepare(self, cell: AbstractCell, dt: Float[Array, ""]) -> _Propagator:
        n = cell.size
        a = cell.operator.as_matrix()
        if cell.damping is not None:
            a = a - jnp.diag(jnp.broadcast_to(cell.damping, (n,)))
        if cell.bias is None and cell.input_matrix is None:
            return _Propagator(cell, jsl.expm(dt * a), None)
        # expm [[A, I], [0, 0]] h = [[P, F], [0, I]]: the integral of the flow beside the flow.
        zero, one = jnp.zeros_like(a), jnp.eye(n, dtype=a.dtype)
        both = jsl.expm(dt * jnp.block([[a, one], [zero, zero]]))
        return _Propagator(cell, both[:n, :n], both[:n, n:])

    def advance(
        self,
        cell: AbstractCell | _Propagator,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        if args is not None and not is_constant_input(args):
            raise ValueError(
                "`args` must be a constant input for ExactLinear; for an input that moves with "
                "time use solver=jaxdyn.Strang(), jaxdyn.Taylor() or jaxdyn.RK4()."
            )
        flow = cell if isinstance(cell, _Propagator) else self.prepare(cell, dt)
        x1 = flow.propagator @ x
        drive = flow.cell.drive(t, args)
        return x1 if drive is None or flow.forcing is None else x1 + flow.forcing @ drive
