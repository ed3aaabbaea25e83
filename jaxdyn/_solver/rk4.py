from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
from jaxtyping import Array, Float, PyTree

from .._cell import AbstractVectorField
from .._types import Args
from .base import AbstractCellSolver


class RK4(AbstractCellSolver):
    r"""The classical fourth-order Runge-Kutta method, its four stages unrolled.

    Serves every cell, and any vector field of diffrax (any pytree state, BacksolveAdjoint too).
    It keeps no structure: on linear oscillations of frequency w one step multiplies the energy by
    1 - (w h)^6 / 72 + (w h)^8 / 576, a slow loss for w h < 2 sqrt 2.

    Source: W. Kutta, Z. Math. Phys. 46 (1901).
    """

    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def order(self, terms) -> int:
        return 4

    def check(self, cell: AbstractVectorField) -> None:
        pass

    def advance(
        self,
        cell: AbstractVectorField,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        return rk4(lambda t, x: dt * cell(t, x, args), t, dt, x)

    def init(self, terms, t0, t1, y0, args) -> None:
        pass

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        control = terms.contr(t0, t1)

        def increment(t, y):
            return terms.vf_prod(t, y, args, control)

        y1 = rk4(increment, t0, t1 - t0, y0)
        dense_info = dict(y0=y0, y1=y1, k0=increment(t0, y0), k1=increment(t1, y1))
        return y1, None, dense_info, None, diffrax.RESULTS.successful


def rk4(increment: Callable, t, dt, x: PyTree) -> PyTree:
    """One step, where `increment(t, x)` is dt times the vector field."""

    def add(scale, k):
        return jax.tree.map(lambda a, b: a + scale * b, x, k)

    half = t + 0.5 * dt
    k1 = increment(t, x)
    k2 = increment(half, add(0.5, k1))
    k3 = increment(half, add(0.5, k2))
    k4 = increment(t + dt, add(1.0, k3))
    return jax.tree.map(lambda y, a, b, c, d: y + (a + 2.0 * (b + c) + d) / 6.0, x, k1, k2, k3, k4)
