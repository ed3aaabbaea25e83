"""The user's own activation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet
from jaxtyping import Array

from .._types import is_traced
from .base import AbstractActivation
from .numerics import fold_odd, gauss_legendre, gauss_mean, real

_NODES = 16
_REFERENCE_NODES = 20


class FunctionActivation(AbstractActivation):
    r"""An activation from a function of the user's own, $s(x) = \mathrm{fn}(x)$.

    Without `potential`, $S(x) = x \int_0^1 s(u^2 x)\,2u\,du$ comes from Gauss-Legendre quadrature
    on 8 panels of 16 nodes (8 in float32), denser near 0, where activations bend. On
    construction its error over $|x| \le$ `limit` is measured, against 20 nodes a panel, and
    refused above `accuracy`; evaluated beyond `limit`, it raises at run time. With `potential`,
    nothing bounds $x$.

    `discrete_gradient` integrates `fn` over segments up to `limit / 32` long, and divides the
    difference of potentials beyond, where that costs at most two digits for $|x| \le$ `limit`.
    Where `fn` is not smooth enough for quadrature (it then needs a `potential`), only segments
    shorter than the cube root of the dtype's rounding unit are integrated.

    `fn` may hold trainable arrays, for instance as an `equinox.Module`; a plain function is
    static. What is measured on construction, `confining` and the accuracy, is that of the arrays
    it holds at that moment; `odd` is False for such a function.

    **Arguments:**

    - `fn`: elementwise; takes a float array and returns one of the same shape and dtype. Made of
        JAX operations, differentiable.
    - `potential`: a function with derivative `fn`; it need not vanish at 0.
    - `confining`: whether $z\,s(z) > 0$ for $z \ne 0$ and $S \to \infty$ on both sides. If None,
        it is judged from 400 points within $\pm$`limit`: `fn` has the sign of $z$ at all of them,
        and $z\,s(z)$ does not fall by more than a tenth between `limit / 2` and `limit`, as it
        would for a potential that levels off. That is evidence, not proof.
    - `limit`: the range of $|x|$ that is integrated and examined.
    - `accuracy`: the largest error of $S$ allowed, relative to $\max(1, |S|)$, and of
        the discrete gradient, relative to $\max(1, |s|)$. Default 1e-10, or
        1e-5 if JAX's default float is float32.

    **Raises:** TypeError if `fn` or `potential` cannot be called; ValueError if it returns
    another shape or dtype, is not elementwise, is not finite within `limit`, if `potential` does
    not belong to `fn`, if the quadrature is less accurate than `accuracy`, or if `fn` holds
    traced arrays, so that nothing can be measured, and `confining` is not given.
    """

    fn: Callable[[Array], Array]
    primitive: Callable[[Array], Array] | None
    limit: float = eqx.field(static=True)
    accuracy: float = eqx.field(static=True)
    _confining: bool = eqx.field(static=True)
    _odd: bool = eqx.field(static=True)
    _regular: bool = eqx.field(static=True)

    def __init__(
        self,
        fn: Any,
        potential: Any = None,
        *,
        confining: bool | None = None,
        limit: float = 20.0,
        accuracy: float | None = None,
    ):
        default = jnp.result_type(float)
        self.limit = real("limit", limit)
        self.accuracy = real(
            "accuracy",
            (1e-10 if default == jnp.float64 else 1e-5) if accuracy is None else accuracy,
        )
        for name, bound in (("limit", self.limit), ("accuracy", self.accuracy)):
            if not bound > 0:
                raise ValueError(f"{name} must be positive; got {bound!r}.")
        self.fn = _as_pytree("fn", fn)
        self.primitive = None if potential is None else _as_pytree("potential", potential)
        for dtype in dict.fromkeys((np.dtype(jnp.float32), np.dtype(default))):
            _check_signature("fn", self.fn, dtype)
            if self.primitive is not None:
                _check_signature("potential", self.primitive, dtype)

        leaves = jax.tree.leaves((self.fn, self.primitive))
        if is_traced(leaves):
            if confining is None:
                raise ValueError(
                    "confining must be given as True or False when fn is built from traced "
                    "arrays, because it cannot be measured then; or build the activation outside "
                    "of the transformation."
                )
            self._confining, self._odd, self._regular = confining, False, potential is None
            return
        with jax.ensure_compile_time_eval():
            z = jnp.asarray(_grid(self.limit), default)
            value = self._measure(z)
            self._regular = self._converges(z)
            if self.primitive is not None:
                self._check_potential(z, value)
        rounding = 8 * float(jnp.finfo(default).eps)
        mirrored = bool(np.all(np.abs(value + value[::-1]) <= rounding * np.abs(value)))
        self._odd = mirrored and not leaves
        self._confining = _looks_confining(np.asarray(z), value) if confining is None else confining

    @property
    def confining(self) -> bool:
        return self._confining

    @property
    def odd(self) -> bool:
        return self._odd

    def _value(self, x: Array) -> Array:
        return self.fn(x)

    def _slope(self, x: Array) -> Array:
        return jax.jvp(self.fn, (x,), (jnp.ones_like(x),))[1]

    def _potential(self, x: Array) -> Array:
        if self.primitive is not None:
            return self.primitive(x) - self.primitive(jnp.zeros((), x.dtype))
        x = self._within_limit(x)
        return x * _mean_from_zero(self.fn, x, _NODES)

    def _mean(self, x0: Array, x1: Array) -> Array:
        return fold_odd(self._segment, x0, x1) if self.odd else self._segment(x0, x1)

    def _segment(self, x0: Array, x1: Array) -> Array:
        d = x1 - x0
        reach = self._reach() if self._regular else float(jnp.finfo(d.dtype).eps) ** (1 / 3)
        short = jnp.abs(d) <= reach
        end = jnp.where(short, x1, x0)
        if self._regular:
            near = _mean_between(self.fn, x0, end, _NODES)
        else:
            near = gauss_mean(self.fn, x0, end, 2)
        far = (self._potential(x1) - self._potential(x0)) / jnp.where(short, 1, d)
        return jnp.where(short, near, far)

    def _reach(self) -> float:
        return self.limit / 32

    def _within_limit(self, x: Array) -> Array:
        return eqx.error_if(
            x,
            jnp.any(jnp.abs(x) > self.limit),
            f"FunctionActivation integrates fn over |x| <= {self.limit} only, and x left that "
            "range. Pass a larger limit=, or the potential of fn.",
        )

    def _series(
        self, x: list[Array], v: list[Array], aux: tuple[list[Array], ...]
    ) -> tuple[list[Array], ...]:
        if not self._regular:
            raise ValueError(
                "fn is not smooth within limit, so it has no Taylor series; use RK4, Strang or "
                "diffrax.Tsit5 instead."
            )
        if len(x) == 1:
            return ([self.fn(x[0])],)
        try:
            head, tail = jet(self.fn, (x[0],), (x[1:],), factorial_scaled=False)
        # jet reports what it cannot do in many ways: KeyError for a primitive without a rule,
        # tracer and attribute errors for jax.custom_jvp.
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                "fn cannot be expanded in a Taylor series by jax.experimental.jet "
                f"({type(error).__name__}: {reason}). It has rules for arithmetic, powers, exp, "
                "log, tanh, sin, cos, erf and the like, and none for functions with a custom_jvp, "
                "such as jax.nn.softplus. Rewrite fn, or use RK4, Strang or diffrax.Tsit5."
            ) from error
        return ([head, *tail],)

    def _measure(self, z: Array) -> np.ndarray:
        """The values of `fn` on the grid, finite and elementwise."""
        value = np.asarray(self.fn(z))
        if not jnp.isfinite(self.fn(jnp.zeros((), z.dtype))):
            raise ValueError("fn(0) must be finite, because the potential starts at 0.")
        if not np.isfinite(value).all():
            raise ValueError(
                f"fn must be finite within limit = {self.limit}; it is not at "
                f"x = {z[int(np.argmin(np.isfinite(value)))]}. Pass a smaller limit=."
            )
        single = np.asarray(jax.vmap(self.fn)(z))
        if np.max(np.abs(single - value)) > 1e-5 * np.max(np.abs(value)):
            raise ValueError(
                "fn must act on each element by itself; on an array it gives other values than "
                "on its elements."
            )
        return value

    def _converges(self, z: Array) -> bool:
        """Whether quadrature is as accurate as promised; without a potential it has to be."""

        def change(rule: Callable[[int], Array], scale: Array) -> float:
            used, better = rule(_NODES), rule(_REFERENCE_NODES)
            return float(
                jnp.max(jnp.abs((used - better) * scale) / jnp.maximum(1, jnp.abs(better * scale)))
            )

        x0 = jnp.minimum(z, self.limit - self._reach())
        x1 = x0 + self._reach()
        error = max(
            change(lambda n: _mean_from_zero(self.fn, z, n), z),
            change(lambda n: _mean_between(self.fn, x0, x1, n), jnp.ones_like(z)),
        )
        if error <= self.accuracy:
            return True
        if self.primitive is not None:
            return False
        raise ValueError(
            f"the potential of fn comes from quadrature with an error of {error:.1e} over "
            f"|x| <= {self.limit}, more than accuracy = {self.accuracy:.1e}. Pass potential=, a "
            "smaller limit= (fn must be smooth within it) or a larger accuracy=."
        )

    def _check_potential(self, z: Array, value: np.ndarray) -> None:
        """`potential` is differentiable, and its derivative is `fn`, at a few points."""
        assert self.primitive is not None
        slope = np.asarray(jax.jvp(self.primitive, (z,), (jnp.ones_like(z),))[1])
        error = np.abs(slope - value) / np.maximum(1, np.abs(value))
        tolerance = 1e3 * float(jnp.finfo(z.dtype).eps) ** 0.75
        # NaN fails too.
        if not np.max(error) <= tolerance:
            worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
            raise ValueError(
                f"potential must have the derivative fn; at x = {z[worst]} its derivative is "
                f"{slope[worst]} and fn gives {value[worst]}."
            )


def _mean_from_zero(fn: Callable[[Array], Array], x: Array, n: int) -> Array:
    """The mean of `fn` over [0, x]."""
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    return _panels(lambda u: 2 * u * fn(u * u * x), zero, one, 8, n)


def _mean_between(fn: Callable[[Array], Array], x0: Array, x1: Array, n: int) -> Array:
    """The mean of `fn` over a short segment."""
    return _panels(fn, x0, x1, 4, n)


def _panels(fn: Callable[[Array], Array], x0: Array, x1: Array, count: int, n: int) -> Array:
    """The mean of `fn` over the segment, on equal panels; node after node, to save memory."""
    d = x1 - x0
    nodes, weights = np.asarray(gauss_legendre(n if d.dtype == jnp.float64 else n // 2)).T
    nodes = np.ravel((np.arange(count)[:, None] + nodes) / count)
    table = jnp.asarray(np.stack([nodes, np.tile(weights / count, count)], axis=1), d.dtype)

    def add(total: Array, node: Array) -> tuple[Array, None]:
        return total + node[1] * fn(x0 + node[0] * d), None

    return jax.lax.scan(add, jnp.zeros_like(d), table)[0]


def _grid(limit: float) -> np.ndarray:
    """400 points in [-limit, limit], symmetric, ascending, without 0, dense near 0 and even."""
    near, even = np.geomspace(1e-4, 1, 100), (np.arange(100) + 0.5) / 100
    half = limit * np.sort(np.concatenate([near, even]))
    return np.concatenate([-half[::-1], half])


def _looks_confining(z: np.ndarray, value: np.ndarray) -> bool:
    push = z * value
    half = np.abs(z) <= 0.5 * z[-1]
    left, right = push[np.argmax(half)], push[len(z) - 1 - np.argmax(half[::-1])]
    return bool(np.all(push > 0) and push[0] >= 0.9 * left and push[-1] >= 0.9 * right)


def _as_pytree(name: str, fn: Any) -> Any:
    """`fn` itself if it is a PyTree; a plain function in one, with the function static."""
    if not callable(fn):
        raise TypeError(f"{name} must be a function of one array; got {fn!r}.")
    leaves = jax.tree.leaves(fn)
    opaque = len(leaves) == 1 and leaves[0] is fn
    return jax.tree_util.Partial(fn) if opaque else fn


def _check_signature(name: str, fn: Callable[[Array], Array], dtype: np.dtype) -> None:
    for shape in ((), (3,)):
        try:
            out = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, dtype))
        except Exception as error:
            raise ValueError(
                f"{name} must take one array; it failed on shape {shape} and dtype {dtype}: {error}"
            ) from error
        if not isinstance(out, jax.ShapeDtypeStruct) or (out.shape, out.dtype) != (shape, dtype):
            raise ValueError(
                f"{name} must return an array of the shape and dtype that it was given, {shape} "
                f"and {dtype}; it returns {out}. Constants in it should be Python numbers."
            )
