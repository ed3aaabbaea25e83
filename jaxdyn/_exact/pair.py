"""Two tanh units, x1' = w tanh x2, x2' = -w tanh x1: every orbit in closed form.

On the level H = log cosh x1 + log cosh x2 put m = k^2 = 1 - exp(-2H). With x2 = 0, x1 > 0 at t = 0,
tanh x2 = -k sn(wt|m) and tanh x1 = k cd(wt|m).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .arguments import real, state, together
from .elliptic import complementary, integrals

# m = 1/2, where K(m) = K(1 - m) and the nome is exp(-pi) on both sides.
_MIDDLE = 0.5 * math.log(2.0)
# exp(-11 pi) and exp(pi/2 - 13 pi) are below 1e-15 and 1e-17.
_HARMONICS = 11
_IMAGES = 7


@jax.jit
def _period(energy: Float[Array, "*s"], frequency: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return 4 * integrals(energy)[0] / frequency


def period(energy: ArrayLike, frequency: ArrayLike = 1.0) -> Float[Array, "..."]:
    r"""Period of the two-unit tanh network on the level set of an energy. Exact.

    $T = (4/w) K(m)$, $m = 1 - e^{-2H}$; $T \to (2\pi/w)(1 + H/2)$ as $H \to 0$ and
    $(4/w)(H + 2\ln 2)$ as $H \to \infty$. Its derivative $dT/dH = (4/w)(E(m) - (1-m)K(m))/m$ comes
    out of `jax.grad` to rounding at every energy, 0 included.

    **Arguments:**

    - `energy`: $H \ge 0$, any shape.
    - `frequency`: $w > 0$ in $W = [[0, w], [-w, 0]]$, radians per time unit; broadcasts.

    **Returns:** the period in time units, the broadcast shape.

    **Raises:** `ValueError` for a negative or non-finite argument; traced values (under `jit`,
    `grad`, `vmap`) are not checked, and outside the range above the result then means nothing.
    """
    energy, frequency = real("energy", energy, 0.0), real("frequency", frequency, 0.0, strict=True)
    return _period(*together(energy, frequency))


@jax.custom_jvp
def _energy_of_quarter(quarter: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The H with K(1 - exp(-2H)) = quarter. K is convex in H and lies above its tangent at 0 and
    its asymptote, so Newton started at the nearer of the two comes down monotonically."""
    energy = jnp.minimum((quarter - math.pi / 2) * (4 / math.pi), quarter - 2 * math.log(2.0))
    energy = jnp.maximum(energy, 0.0)
    for _ in range(5):
        first, slope = integrals(energy)
        energy = jnp.maximum(energy - (first - quarter) / slope, 0.0)
    return energy


@_energy_of_quarter.defjvp
def _energy_of_quarter_jvp(primals, tangents):
    energy = _energy_of_quarter(*primals)
    return energy, tangents[0] / integrals(energy)[1]


@jax.jit
def _energy_of_period(
    period: Float[Array, "*s"], frequency: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    return _energy_of_quarter(frequency * period / 4)


def energy_of_period(period: ArrayLike, frequency: ArrayLike = 1.0) -> Float[Array, "..."]:
    r"""Energy of the orbit that has a given period: the inverse of `period`. Exact.

    Newton's method on $K(1 - e^{-2H}) = w T/4$. The absolute error is a few units of rounding of
    $w T$; near $H = 0$ the relative error grows, since there $T$ hardly depends on $H$.

    **Arguments:**

    - `period`: $T \ge 2\pi/w$ in time units, any shape.
    - `frequency`: $w > 0$, broadcasts with `period`.

    **Returns:** $H \ge 0$, the broadcast shape.

    **Raises:** `ValueError` for a non-finite argument, or a period below $2\pi/w$, which no orbit
    has; traced values are not checked and such a period then gives 0.
    """
    frequency = real("frequency", frequency, 0.0, strict=True)
    period, frequency = together(real("period", period, 0.0, strict=True), frequency)
    # Rounding may put the period of a vanishing orbit just below 2 pi / w.
    slack = 8 * float(jnp.finfo(period.dtype).eps)
    try:
        real("period * frequency / (2 pi)", period * frequency / (2 * math.pi) + slack, 1.0)
    except ValueError as error:
        raise ValueError(
            f"period must be at least 2 pi / frequency, the period of small oscillations: {error}"
        ) from None
    return _energy_of_period(period, frequency)


def _by_harmonics(
    first: Float[Array, "*s 1"], other: Float[Array, "*s 1"], phase: Float[Array, "*s 1"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """(x1, -x2) as Fourier series, for m <= 1/2: the integral of that of sn, term by term.
    first = K(m), other = K(1 - m)."""
    n = np.arange(_HARMONICS).reshape((1,) * (phase.ndim - 1) + (-1,))
    j = jnp.asarray(2 * n + 1, phase.dtype)
    sign = jnp.asarray((-1) ** n, phase.dtype)
    decay = j * (math.pi * other / (2 * first))
    angle = j * (math.pi * phase / (2 * first))
    amplitude = 4 * jnp.exp(-decay) / (-j * jnp.expm1(-2 * decay))
    x = jnp.sum(amplitude * jnp.cos(angle), axis=-1)
    return x, jnp.sum(sign * amplitude * jnp.sin(angle), axis=-1)


def _by_images(
    energy: Float[Array, "*s 1"],
    first: Float[Array, "*s 1"],
    other: Float[Array, "*s 1"],
    phase: Float[Array, "*s 1"],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """(x1, -x2) for m >= 1/2, |phase| <= K/2: k sn as the alternating sum of tanh over the dual
    lattice, integrated term by term. No exponential below has a positive argument."""
    n = np.arange(1, _IMAGES + 1).reshape((1,) * (phase.ndim - 1) + (-1,))
    even, odd = jnp.asarray(2 * n, phase.dtype), jnp.asarray(2 * n - 1, phase.dtype)
    alternating = jnp.asarray((-1) ** n, phase.dtype)
    scale = math.pi / (2 * other)
    # Not jnp.abs, whose derivative at 0 is 0.
    sign = jnp.where(phase < 0, -1.0, 1.0).astype(phase.dtype)
    a, spacing = sign * scale * phase, scale * first
    fold = jnp.exp(-2 * a)
    b = even * spacing
    ratio = jnp.exp(a - b) * (1 - fold) / (1 + jnp.exp(-2 * b))
    x = jnp.sum(-alternating * jnp.log1p(ratio * ratio), axis=-1, keepdims=True)
    b = odd * spacing
    ratio = jnp.exp(2 * (a - b)) * -jnp.expm1(-4 * a) / (1 + jnp.exp(-2 * (a + b)))
    y = jnp.sum(alternating * jnp.log1p(ratio), axis=-1, keepdims=True)
    largest = energy + jnp.log1p(jnp.sqrt(-jnp.expm1(-2 * energy)))
    x = largest - (a + jnp.log1p(fold) - math.log(2.0)) + x
    return x[..., 0], (sign * (a + y))[..., 0]


@jax.jit
def _orbit(
    t: Float[Array, "*s"], energy: Float[Array, "*s"], frequency: Float[Array, "*s"]
) -> Float[Array, "*s 2"]:
    moving = energy > 0
    energy = jnp.where(moving, energy, 1.0)
    first, _ = integrals(energy)
    turns = jax.lax.stop_gradient(jnp.round(frequency * t / first))
    phase = frequency * t - turns * first
    columns = [v[..., None] for v in (energy, first, complementary(energy), phase)]
    # Either sum is finite, and so are its derivatives, where the other is the accurate one.
    x_low, y_low = _by_harmonics(*columns[1:])
    x_high, y_high = _by_images(*columns)
    low = energy < _MIDDLE
    x, y = jnp.where(low, x_low, x_high), -jnp.where(low, y_low, y_high)
    # A quarter period maps (x1, x2) to (x2, -x1).
    quarter = turns % 4
    odd = quarter % 2 == 1
    x, y = jnp.where(odd, y, x), jnp.where(odd, -x, y)
    sign = jnp.where(moving, jnp.where(quarter < 2, 1.0, -1.0), 0.0).astype(phase.dtype)
    return jnp.stack([sign * x, sign * y], axis=-1)


def orbit(t: ArrayLike, energy: ArrayLike, frequency: ArrayLike = 1.0) -> Float[Array, "... 2"]:
    r"""State of the two-unit tanh network at time t, on the level set of an energy. Exact.

    $x_1' = w \tanh x_2$, $x_2' = -w \tanh x_1$ from $x_2 = 0$, $x_1 > 0$ at $t = 0$:
    $\tanh x_1 = k\,\mathrm{cd}(wt|m)$, $\tanh x_2 = -k\,\mathrm{sn}(wt|m)$,
    $m = k^2 = 1 - e^{-2H}$. Both states are summed as Fourier series ($m < 1/2$) or over the dual
    lattice ($m > 1/2$): neither large energies (500 and beyond) nor states near an axis cost
    accuracy. The error is that of the phase, about $wt$ units of rounding. $H = 0$ is rest.

    **Arguments:**

    - `t`: time from the start, of either sign, any shape.
    - `energy`: $H \ge 0$; `frequency`: $w > 0$; both broadcast with `t`.

    **Returns:** $(x_1, x_2)$ in the last axis, behind the broadcast shape.

    **Raises:** `ValueError` for a non-finite argument or a negative energy or frequency; traced
    values are not checked. States grow like $\sqrt{2H}$, so their derivative with respect to the
    energy is infinite at 0: there, and only there, 0 is returned for it.
    """
    t, energy = real("t", t), real("energy", energy, 0.0)
    return _orbit(*together(t, energy, real("frequency", frequency, 0.0, strict=True)))


def harmonics(energy: ArrayLike, frequency: ArrayLike = 1.0, *, k: int) -> Float[Array, "... k"]:
    r"""Amplitudes of the first k harmonics in $\tanh x_2$ along an orbit of two tanh units. Exact.

    $\tanh x_2(t) = -\sum_{n<k} A_n \sin((2n+1)\, 2\pi t/T)$: odd harmonics only, with
    $A_n = (2\pi/K)\, q^{n+1/2}/(1 - q^{2n+1})$, $q = \exp(-\pi K(1-m)/K(m))$.

    **Arguments:**

    - `energy`: $H \ge 0$, any shape.
    - `frequency`: $w > 0$, broadcasts with `energy`. It sets the period (see `period`), and with it
        the angular frequencies $(2n+1)\, 2\pi/T$ of the harmonics, but not their amplitudes.
    - `k`: how many.

    **Returns:** the amplitudes $A_0 > A_1 > \dots$ in the last axis.

    **Raises:** `ValueError` for a negative or non-finite argument or `k < 1`; traced values are not
    checked. At energy 0 the derivative of $A_0$ is infinite and 0 is returned for it.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of harmonics, at least 1, got {k!r}")
    energy, frequency = real("energy", energy, 0.0), real("frequency", frequency, 0.0, strict=True)
    energy, _ = together(energy, frequency)
    moving = energy > 0
    safe = jnp.where(moving, energy, 1.0)
    first, _ = integrals(safe)
    decay = math.pi * complementary(safe) / (2 * first)
    amplitudes = [
        2 * math.pi / first * jnp.exp(-j * decay) / -jnp.expm1(-2 * j * decay)
        for j in range(1, 2 * k, 2)
    ]
    return jnp.stack([jnp.where(moving, a, 0.0) for a in amplitudes], axis=-1)


def monodromy(x: ArrayLike, frequency: ArrayLike = 1.0) -> Float[Array, "2 2"]:
    r"""Derivative of the two-unit tanh network's flow over one period, at a state. Exact.

    $M = I - T'(H)\, f\, \nabla H^T$, $f = (w\tanh x_2, -w\tanh x_1)$, $\nabla H = (\tanh x_1,
    \tanh x_2)$: both multipliers are 1, in one Jordan block. At the origin $M = I$.

    **Arguments:**

    - `x`: the state, shape (2,).
    - `frequency`: $w > 0$, a scalar.

    **Returns:** M, shape (2, 2).

    **Raises:** `ValueError` for a wrong shape or non-finite values; traced values are not checked.
    """
    x = state("x", x, 2)
    frequency = jnp.asarray(real("frequency", frequency, 0.0, strict=True), x.dtype)
    if frequency.shape != ():
        raise ValueError(f"frequency must be a scalar, got shape {frequency.shape}")
    gradient = jnp.tanh(x)
    energy = jnp.sum(jnp.logaddexp(x, -x) - math.log(2.0))
    flow = jnp.stack([gradient[1], -gradient[0]])
    # f carries a factor w and T' = (4/w) B, so that w drops out.
    return jnp.eye(2, dtype=x.dtype) - 4 * integrals(energy)[1] * jnp.outer(flow, gradient)


def shell_multiplier(
    energy: ArrayLike, rate: ArrayLike, frequency: ArrayLike = 1.0
) -> Float[Array, "..."]:
    r"""Floquet multiplier of the limit cycle that an energy shell makes of two tanh units. Exact.

    $x' = W g - \kappa (H - H^*) g$, $g = \nabla H$, has the level set $H = H^*$ for a limit cycle
    with period `period(H*, w)`, and its nontrivial multiplier is
    $\exp(-\kappa \oint |g|^2 dt) = \exp(-(8\kappa/w)(K(m) - E(m)))$, $m = 1 - e^{-2H^*}$.

    **Arguments:**

    - `energy`: $H^* \ge 0$ of the shell; at 0 there is no cycle and the multiplier is 1.
    - `rate`: $\kappa$; positive attracts (multiplier below 1), negative repels.
    - `frequency`: $w > 0$. All three broadcast.

    **Returns:** the multiplier per period, the broadcast shape.

    **Raises:** `ValueError` for a non-finite argument or a negative energy or frequency; traced
    values are not checked.
    """
    energy, rate = real("energy", energy, 0.0), real("rate", rate)
    energy, rate, frequency = together(energy, rate, real("frequency", frequency, 0.0, strict=True))
    first, slope = integrals(energy)
    return jnp.exp(8 * rate / frequency * jnp.expm1(-2 * energy) * (first - slope))
