import functools as ft
import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.jet import jet
from jaxtyping import Array, Float

from .._cell import (
    AbstractCell,
    AbstractInputs,
    AntisymmetricCell,
    PoissonCell,
    is_constant_input,
)
from .._skew import AbstractSkewOperator, FormedSkew
from .._types import Args
from .base import AbstractCellSolver, beside, own_time, unwrap

# Up to this many units W x is a sum of columns, and the coefficients of a tile of trajectories,
# about 2 p + 8 arrays, fit into a cache of about so many bytes (benchmarks/tiles.py). Larger
# products of large batches XLA shares among cores, which is worth more than a cache.
MAX_COLUMNS = 16
# Beyond so many units the derivative of W x is a matrix product for all that: of eight units the
# gradient of a solve compiles in a quarter of the time and takes as long; of two it would take
# twice as long.
MAX_COLUMN_DERIVATIVES = 4
CACHE = 48 * 1024


class Taylor(AbstractCellSolver, diffrax.AbstractAdaptiveSolver[None]):
    r"""The Taylor series of the flow, of any order p: x(t + h) = sum_k x_k h^k, k = 0..p.

    The coefficients come from the recurrence of the activation (for tanh, s' = (1 - s^2) x'): p
    products with W and O(p^2) elementwise operations a step, no system to solve. With a step size
    controller the last term x_p h^p is the error estimate, so the step follows from the last
    coefficients; dense output and save times between steps are the polynomial itself.

    Explicit and not structure-preserving: energy, Casimirs (to rounding) and time reversal hold as
    well as the truncation error, which at the default order is rounding for |W|_2 h about 0.25.
    Serves analytic activations (tanh, identity, arctan, erf, ISRU, sigmoid, softplus; others
    through `jax.experimental.jet` in a FunctionActivation) with bias, damping, EnergyShell, and
    inputs that are constant or a callable u(t) analytic in t. A jump or kink in u(t) cannot be
    seen from its derivatives and costs all accuracy: step up to it, or use another solver.

    **Arguments:**

    - `order`: p >= 1, a Python integer.

    **Raises:** ValueError when `order` is not a positive integer, or the cell has no recurrence.

    Source: Jorba and Zou, Experimental Mathematics 14 (2005).
    """

    reversible: ClassVar = True

    degree: int = eqx.field(static=True)

    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]]

    def __init__(self, order: int = 16):
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise ValueError(f"`order` must be a positive integer, got {order!r}.")
        self.degree = order

    def order(self, terms) -> int:
        return self.degree

    def check(self, cell: AbstractCell) -> None:
        leaves, structure = jax.tree.flatten(cell.activation)
        leaves = tuple(
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf
            for leaf in leaves
        )
        x = jax.ShapeDtypeStruct((cell.size,), cell.operator.dtype)
        _check_series(structure, leaves, x)

    def tile(self, cell: AbstractCell, itemsize: int, shared: bool) -> int | None:
        if cell.size > MAX_COLUMNS:
            return 64 if shared else None
        fits = CACHE // ((2 * self.degree + 8) * cell.size * itemsize)
        # A power of two, and not so few that starting a loop takes longer than what it does.
        return min(max(1 << fits.bit_length() >> 1, 128 // itemsize), 512 // itemsize)

    def advance(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, " n"],
        args: Args,
    ) -> Float[Array, " n"]:
        return _horner(coefficients(cell, t, x, args, self.degree), dt)

    def advance_batch(
        self,
        cell: AbstractCell,
        t: Float[Array, ""],
        dt: Float[Array, ""],
        x: Float[Array, "n b"],
        inputs: AbstractInputs,
    ) -> Float[Array, "n b"]:
        def drive(i):
            return _drive_series(cell, t, inputs(i), self.degree)

        drives = jax.vmap(drive, out_axes=-1)(jnp.arange(x.shape[1]))
        return _horner(_series(cell, x, drives, self.degree), dt)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        cell, direction = unwrap(terms, self)
        t, dt = own_time(t0, t1, direction, y0.dtype)
        series = coefficients(cell, t, y0, args, self.degree)
        scaled = [c * dt**k for k, c in enumerate(series)]
        y1 = _horner(series, dt)
        dense_info = dict(y0=y0, y1=y1, terms=jnp.stack(scaled))
        return y1, scaled[-1], dense_info, None, diffrax.RESULTS.successful


class _TaylorInterpolation(diffrax.AbstractLocalInterpolation):
    """The Taylor polynomial of one step, in the fraction of the step."""

    t0: Array
    t1: Array
    y0: Array
    y1: Array
    terms: Array

    def evaluate(self, t0, t1=None, left: bool = True):
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        length = jnp.where(self.t0 == self.t1, 1.0, self.t1 - self.t0)
        fraction = jnp.where(self.t0 == self.t1, 0.0, (t0 - self.t0) / length)
        return _horner(list(self.terms), fraction.astype(self.terms.dtype))


Taylor.interpolation_cls = _TaylorInterpolation


@ft.lru_cache(maxsize=256)
def _check_series(structure: Any, leaves: tuple, x: jax.ShapeDtypeStruct) -> None:
    """The recurrence of an activation itself refuses what it cannot do; a trace shows it."""

    def expand(activation, x):
        return activation.series([x], [], ())

    eqx.filter_eval_shape(expand, jax.tree.unflatten(structure, leaves), x)


def _horner(series: list[Array], h: Array) -> Array:
    total = series[-1]
    for term in reversed(series[:-1]):
        total = term + h * total
    return total


def coefficients(
    cell: AbstractCell, t: Array, x: Float[Array, " n"], args: Args, order: int
) -> list[Float[Array, " n"]]:
    """The Taylor coefficients x_0, ..., x_order of the solution through `x` at `t`."""
    return _series(cell, x, _drive_series(cell, t, args, order), order)


def _series(cell: AbstractCell, x: Float[Array, "n *b"], drive: list, order: int) -> list:
    if isinstance(cell, AntisymmetricCell):
        return _antisymmetric_series(cell, x, drive, order)
    assert isinstance(cell, PoissonCell)
    return _poisson_series(cell, x, drive, order)


def _poisson_series(cell: PoissonCell, x: Array, drive: list, order: int) -> list:
    damping, regulator = _damping(cell, x), cell.regulator
    xs, vs, aux = [x], [], ()
    energy: list = []
    for k in range(order):
        aux = cell.activation.series(xs, vs, aux)
        s = aux[0]
        v = _product(cell.operator, s[k])
        if drive[k] is not None:
            v = v + drive[k]
        if damping is not None:
            v = v - damping * s[k]
        if regulator is not None:
            # H' = s.x' gives the series of H, and the force is the product of two series.
            if k == 0:
                height = jnp.sum(cell.activation.potential(x), axis=0, keepdims=True)
                energy.append(height - regulator.energy)
            else:
                power = sum(s[k - 1 - j] * vs[j] for j in range(k))
                energy.append(jnp.sum(power, axis=0, keepdims=True) / k)
            product: Any = sum((energy[j] * s[k - j] for j in range(1, k + 1)), energy[0] * s[k])
            v = v - regulator.rate * regulator.direction(product)
        vs.append(v)
        xs.append(v / (k + 1))
    return xs


def _antisymmetric_series(cell: AntisymmetricCell, y: Array, drive: list, order: int) -> list:
    damping = _damping(cell, y)
    ys, zs, z_rates, aux = [y], [], [], ()
    for k in range(order):
        z = _product(cell.operator, ys[k])
        if drive[k] is not None:
            z = z + drive[k]
        if damping is not None:
            z = z - damping * ys[k]
        zs.append(z)
        if k > 0:
            z_rates.append(k * z)
        aux = cell.activation.series(zs, z_rates, aux)
        ys.append(aux[0][k] / (k + 1))
    return ys


def _product(operator: AbstractSkewOperator, x: Float[Array, "n *b"]) -> Float[Array, "n *b"]:
    """W x of one trajectory, or of each in the minor axis."""
    if x.ndim == 1:
        return operator.mv(x)
    if isinstance(operator, FormedSkew) and operator.size <= MAX_COLUMNS:
        few = operator.size <= MAX_COLUMN_DERIVATIVES
        return (_columns if few else _columns_and_products)(operator.matrix, x)
    return jax.vmap(operator.mv, -1, -1)(x)


def _columns(W: Float[Array, "n n"], x: Float[Array, "n b"]) -> Float[Array, "n b"]:
    """W x. A tiny matrix product costs more than it computes."""
    # Without the barriers XLA works x out again for every column, and the sum for everything that
    # is made of it.
    x = jax.lax.optimization_barrier(x)
    terms = [W[:, j : j + 1] * x[j : j + 1] for j in range(len(W))]
    return jax.lax.optimization_barrier(sum(terms[1:], start=terms[0]))


_columns_and_products = jax.custom_jvp(_columns)


@_columns_and_products.defjvp
def _(primals, tangents):
    (W, x), (dW, dx) = primals, tangents
    product = ft.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return _columns_and_products(W, x), product(W, dx) + product(dW, x)


def _damping(cell: AbstractCell, x: Float[Array, "n *b"]) -> Array | None:
    return None if cell.damping is None else beside(cell.damping, x)


def _drive_series(cell: AbstractCell, t: Array, args: Args, order: int) -> list:
    """The Taylor coefficients of U u(t) + b, None where they vanish."""
    constant = cell.drive(t, args)
    if args is None or is_constant_input(args) or order == 1:
        return [constant, *([None] * (order - 1))]
    if isinstance(args, diffrax.AbstractPath):
        raise ValueError(
            "`args`: a diffrax path is piecewise, and Taylor needs an input analytic in t; pass a "
            "callable u(t) that is, or use solver=jaxdyn.Strang() or jaxdyn.RK4()."
        )
    one, zero = jnp.ones_like(t), jnp.zeros_like(t)
    try:
        _, derivatives = jet(lambda t: cell.drive(t, args), (t,), ((one, *([zero] * (order - 2))),))
    except (NotImplementedError, KeyError, TypeError) as e:
        raise ValueError(
            "`args`: Taylor needs the time derivatives of the input u(t), and jax.experimental.jet "
            f"cannot take them here ({e}); pass a constant, or an analytic callable, or use "
            "solver=jaxdyn.RK4() or jaxdyn.Strang()."
        ) from e
    return [constant, *(d / math.factorial(k + 1) for k, d in enumerate(derivatives))]
