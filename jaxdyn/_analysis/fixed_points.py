"""Points of rest of a cell or of any vector field, and what the linearised motion does there."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Complex, Float

from .._cell import (
    AbstractCell,
    cast,
    check_constant,
)
from .._simulate import check_number
from .._types import Args, is_inside_jit, is_traced
from .rest import Answer, check_size, rest_of_cell

_MAX_STEPS = 100


class FixedPoints(eqx.Module):
    r"""What [`jaxdyn.fixed_points`][] found: p points of n units.

    - `kind`: "point" (there is exactly one), "continuum" (a family, of which `points` holds one),
        "none" (proven, or the solve ran off to infinity), or "search" (what Newton's method found
        from the starts; there may be more).
    - `points`: the points of rest, (p, n).
    - `residual`: $\max_i |f_i|$ at each, (p,).
    - `eigenvalues`: those of the Jacobian, (p, n), by ascending imaginary, then real part. At a
        centre the imaginary parts are the frequencies, in radians per time unit.
    - `types`: p names. "stable node", "stable focus", "unstable node", "unstable focus", "saddle"
        and "saddle-focus" are what is hyperbolic, a focus being what has complex eigenvalues;
        "centre": all are imaginary and none is 0; "non-hyperbolic": any other case with an
        eigenvalue that is imaginary or 0. The d eigenvalues 0 along `directions` are set aside.
        A centre is stable in a Poisson cell with an increasing activation and neither damping nor
        regulator, where $\sum_i S(x_i) - s(x_*) \cdot x$ is conserved and convex; elsewhere the
        name speaks of the linearised motion alone.
    - `directions`: (d, n), orthonormal rows tangent to a continuum at its point; d = 0 elsewhere.
    - `converged_starts`: how many starts of a search converged; 0 elsewhere.
    - `note`: one sentence that says why it is this kind.
    """

    kind: str = eqx.field(static=True)
    points: Float[Array, "p n"]
    residual: Float[Array, " p"]
    eigenvalues: Complex[Array, "p n"]
    types: tuple[str, ...] = eqx.field(static=True)
    directions: Float[Array, "d n"]
    converged_starts: int = eqx.field(static=True)
    note: str = eqx.field(static=True)


def fixed_points(
    field: Any,
    starts: Any = None,
    *,
    args: Args = None,
    tol: float | int | None = None,
) -> FixedPoints:
    r"""The points of rest, f(0, x, args) = 0, with eigenvalues and types. Eager only.

    With $A = W - \mathrm{diag}(\gamma)$, $\gamma$ the damping and $b$ bias and constant input:

    - a Poisson cell rests where $A\,s(x) = -b$. Regular A: one point, or none when an $s_i$ lies
        beyond the range of the activation. Otherwise there is none when $b$ is not in the range of
        A, and else a continuum $s(x) = s_p + N c$, N an orthonormal basis of ker A, unless no
        $c$ brings s into range. The point returned has $N^T x = 0$: it minimises
        $\sum_i S(x_i) - s_p \cdot x$ over those x, a convex problem.
    - an antisymmetric cell rests where $A y + b = z$, $s(z_i) = 0$. The shortest y is returned.
    - a Poisson cell with a regulator, regular W, and neither bias nor damping other than a scalar,
        rests where s(x) = 0 only.
    - for anything else, cells that these rules leave open among them (such as those with an
        activation that is flat where they need it), Newton's method is run from every start, and
        points closer than $\sqrt{\mathrm{tol}}\,(1 + |x|)$ are taken for one.

    **Arguments:**

    - `field`: a cell, or any f(t, x, args) -> (n,), which is frozen at t = 0.
    - `starts`: (b, n); used by the search alone, which needs them.
    - `args`: the input of a cell, a constant (m,); for another field whatever it takes.
    - `tol`: of the search, bounds max |f| and the last step relative to 1 + |x|; otherwise the
        part of b outside the range of A that counts as 0, relative to |b|. None means 1e-10, and
        1e-5 in float32.

    **Returns:** a [`jaxdyn.FixedPoints`][]. A search that finds nothing is empty.

    **Raises:** TypeError or ValueError that names the argument, `starts` too when the search needs
    them and there are none.
    """
    if is_inside_jit() or is_traced((field, starts, args)):
        raise ValueError(
            "`field`, `starts` and `args` must be concrete, because the number of points depends "
            "on values; call fixed_points outside jit, grad and vmap."
        )
    if not callable(field) or isinstance(field, type):
        raise TypeError(
            "`field` must be a cell such as jaxdyn.PoissonCell(...) or a function f(t, x, args), "
            f"got {field!r}."
        )
    cell = field if isinstance(field, AbstractCell) else None
    if starts is not None:
        starts = _check_starts(starts, cell)
    if tol is not None:
        tol = float(check_number("tol", tol, "a finite number > 0"))
        if not tol > 0:
            raise ValueError(f"`tol` must be a finite number > 0, got {tol}.")

    why = "No closed form is known for this field."
    if cell is not None:
        dtype = cell.operator.dtype
        if jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"`field` must hold float32 or float64, got {dtype}; build its operator with "
                "dtype=jnp.float32."
            )
        answer = rest_of_cell(cell, args, _tolerance(tol, dtype))
        if not answer.search:
            return _report(cell, answer, args, dtype)
        why = answer.note
    if starts is None:
        raise ValueError(
            f"`starts` must be given, as an array (b, n) of states to search from. {why}"
        )
    if cell is not None:
        field = cast(cell, starts.dtype)
    return _search(field, starts, args, _tolerance(tol, starts.dtype), why)


def _tolerance(tol: float | None, dtype: Any) -> float:
    default = 1e-10 if dtype == np.float64 else 1e-5
    return default if tol is None else tol


def _check_starts(starts: Any, cell: AbstractCell | None) -> Array:
    check_constant(starts, "starts")
    array = jnp.asarray(starts)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float) if cell is None else cell.operator.dtype)
    elif jnp.finfo(array.dtype).bits < 32:
        raise TypeError(f"`starts` must be float32 or float64, got {array.dtype}; convert it.")
    wanted = "n" if cell is None else str(cell.size)
    if array.ndim != 2 or 0 in array.shape or (cell and array.shape[1] != cell.size):
        raise ValueError(
            f"`starts` must have shape (b, {wanted}), one state per row; got {array.shape}. Pass "
            "starts[None] for a single state."
        )
    check_size(array.shape[1], "starts")
    return array


def _report(cell: AbstractCell, answer: Answer, args: Args, dtype: Any) -> FixedPoints:
    n = cell.size
    directions = np.zeros((0, n)) if answer.directions is None else answer.directions
    if answer.point is None:
        points = jnp.zeros((0, n), dtype)
        return _describe(cell, "none", points, args, answer.note)
    points = jnp.asarray(answer.point[None], dtype)
    kind = "continuum" if len(directions) else "point"
    return _describe(cell, kind, points, args, answer.note, directions, answer.spectrum)


def _describe(
    field: Callable,
    kind: str,
    points: Array,
    args: Args,
    note: str,
    directions: np.ndarray | None = None,
    spectrum: np.ndarray | None = None,
    converged: int = 0,
) -> FixedPoints:
    p, n = points.shape
    dtype = points.dtype
    eps = float(jnp.finfo(dtype).eps)
    d = 0 if directions is None else len(directions)
    residual = jnp.zeros((p,), dtype)
    rows: list[np.ndarray] = []
    if p:
        values, jacobians = _linearise(field, points, args)
        residual = jnp.max(jnp.abs(values), axis=1)
        if spectrum is not None:
            rows = [spectrum]
        else:
            rows = [np.linalg.eigvals(J).astype(complex) for J in np.asarray(jacobians, float)]
    rows = [row[np.lexsort((np.real(row), np.imag(row)))] for row in rows]
    kept = np.zeros((0, n)) if directions is None else directions
    return FixedPoints(
        kind=kind,
        points=points,
        residual=residual,
        eigenvalues=jnp.asarray(
            np.asarray(rows, complex).reshape(p, n), np.result_type(dtype, np.complex64)
        ),
        types=tuple(_type(row, d, eps) for row in rows),
        directions=jnp.asarray(kept, dtype),
        converged_starts=converged,
        note=note,
    )


@eqx.filter_jit
def _linearise(field: Callable, points: Array, args: Args) -> tuple[Array, Array]:
    def at(x):
        return field(jnp.zeros((), x.dtype), x, args)

    return jax.vmap(at)(points), jax.vmap(jax.jacfwd(at))(points)


def _type(values: np.ndarray, d: int, eps: float) -> str:
    """The name of a point of rest, from its eigenvalues and the dimension of its continuum."""
    values = values[np.argsort(np.abs(values), kind="stable")]
    size = np.abs(values[d:])
    real, imag = np.real(values[d:]), np.imag(values[d:])
    small = eps ** (2 / 3) * float(np.abs(values[-1]))
    turning = np.abs(imag) > np.sqrt(eps) * size
    decided = np.abs(real) > small
    if size.size and not decided.any() and np.all(turning & (size > small)):
        return "centre"
    if not size.size or not decided.all():
        return "non-hyperbolic"
    grows = real > 0
    if grows.any() and not grows.all():
        return "saddle-focus" if turning.any() else "saddle"
    return f"{'unstable' if grows.all() else 'stable'} {'focus' if turning.any() else 'node'}"


def _search(field: Callable, starts: Array, args: Args, tol: float, why: str) -> FixedPoints:
    _check_field(field, starts, args)
    ends, success = _newton(field, starts, args, tol)
    reached = np.asarray(ends, np.float64)
    success = np.asarray(success) & np.all(np.isfinite(reached), axis=1)
    kept: list[int] = []
    for i in np.flatnonzero(success):
        x = reached[i]
        apart = np.sqrt(tol) * (1 + np.linalg.norm(x))
        if all(np.linalg.norm(x - reached[k]) > apart for k in kept):
            kept.append(int(i))
    count = int(success.sum())
    note = f"{why} {count} of {len(starts)} starts converged."
    points = ends[np.asarray(kept, int)]
    return _describe(field, "search", points, args, note, converged=count)


def _check_field(field: Callable, starts: Array, args: Args) -> None:
    x = starts[0]
    try:
        out = eqx.filter_eval_shape(field, jnp.zeros((), x.dtype), x, args)
    except Exception as e:  # whatever the user's own function raises
        raise ValueError(
            f"`field` must take (t, x, args) with x of shape {x.shape}, as `starts` has it, and "
            f"failed: {e}"
        ) from e
    shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
    if shape != x.shape or dtype != x.dtype:
        raise ValueError(
            f"`field` must return x' of shape {x.shape} and dtype {x.dtype}, as `starts` has it; "
            f"got shape {shape} and dtype {dtype}."
        )


@eqx.filter_jit
def _newton(field: Callable, starts: Array, args: Args, tol: float) -> tuple[Array, Array]:
    # The shortest step where the Jacobian is singular, as it is along a continuum.
    linear = lx.SVD(rcond=1e3 * float(jnp.finfo(starts.dtype).eps))
    solver = optx.Newton(rtol=tol, atol=tol, linear_solver=linear)

    def solve(start):
        def rate(x, args):
            return field(jnp.zeros((), x.dtype), x, args)

        sol = optx.root_find(rate, solver, start, args, max_steps=_MAX_STEPS, throw=False)
        return sol.value, sol.result == optx.RESULTS.successful

    return jax.vmap(solve)(starts)
