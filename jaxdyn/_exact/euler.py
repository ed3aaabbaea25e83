"""How much energy forward Euler gains: the exact law of linear networks, the averaged law of the
two-unit tanh network, and a bound for every bounded activation."""

import math

import diffrax as dfx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .arguments import real, skew_matrix, state, together
from .elliptic import integrals


def _log_rate(energy: Float[Array, ""]) -> Float[Array, ""]:
    """(m/H) B/K, the averaged growth rate of log H in units of h w^2; 1 at H = 0."""
    first, slope = integrals(energy)
    small = energy < 1e-3
    series = 2 - 2 * energy * (1 - energy * (2 / 3 - energy * (1 / 3 - energy * (2 / 15))))
    away = jnp.where(small, 1.0, energy)
    return jnp.where(small, series, -jnp.expm1(-2 * away) / away) * slope / first


def _grown(log_growth: Float[Array, ""], start: Float[Array, ""]) -> Float[Array, ""]:
    # At start = 0 the linear law runs for ever and exp would overflow into 0 * inf.
    largest = math.log(float(jnp.finfo(start.dtype).max)) - 1
    return start * jnp.exp(jnp.minimum(log_growth, largest))


@jax.custom_jvp
def _log_growth(scaled_time: Float[Array, ""], start: Float[Array, ""]) -> Float[Array, ""]:
    """log(H/H_0) after h w^2 t = scaled_time."""
    dtype = start.dtype
    tolerance = max(1e-12, 10 * float(jnp.finfo(dtype).eps))
    solution = dfx.diffeqsolve(
        dfx.ODETerm(lambda _, y, args: args[0] * _log_rate(_grown(y, args[1]))),
        dfx.Dopri8(),
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=None,
        y0=jnp.zeros((), dtype),
        args=(scaled_time, start),
        stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
        # Derivatives come from the rule below, so the solve itself may be a plain while loop.
        adjoint=dfx.ForwardMode(),
    )
    assert solution.ys is not None
    return solution.ys[0]


@_log_growth.defjvp
def _log_growth_jvp(primals, tangents):
    """The law is autonomous: dH/d(scaled_time) = F(H), dH/dH_0 = F(H)/F(H_0), F = H _log_rate."""
    scaled_time, start = primals
    log_growth = _log_growth(scaled_time, start)
    rate, initial = _log_rate(_grown(log_growth, start)), _log_rate(start)
    moving = start > 0
    by_start = jnp.where(moving, (rate / initial - 1) / jnp.where(moving, start, 1.0), 0.0)
    return log_growth, rate * tangents[0] + by_start * tangents[1]


@jax.jit
def _euler_energy(scaled_time: Float[Array, "*s"], start: Float[Array, "*s"]) -> Float[Array, "*s"]:
    solve = jax.vmap(lambda tau, energy: _grown(_log_growth(tau, energy), energy))
    return solve(scaled_time.reshape(-1), start.reshape(-1)).reshape(start.shape)


def euler_energy(
    t: ArrayLike, energy: ArrayLike, frequency: ArrayLike, dt: ArrayLike
) -> Float[Array, "..."]:
    r"""Energy that forward Euler has reached at time t, two tanh units. Leading order in the step.

    Averaged over an orbit, $dH/dt = h w^2 (E(m)/K(m) - (1-m))$, $m = 1 - e^{-2H}$, $h$ the step:
    the error is $O(h)$ while $h w^2 t$ stays fixed. At small H that is the exponential of the
    linear network, $H_0 e^{h w^2 t}$, at large H
    $(H + 2\ln 2)^2 = (H_0 + 2\ln 2)^2 + 2 h w^2 t$. The law itself is solved to a relative 1e-11 in
    float64 and 1e-5 in float32.

    **Arguments:**

    - `t`: time since the start, $\ge 0$, any shape.
    - `energy`: $H_0 \ge 0$ at the start; `frequency`: $w > 0$; `dt`: Euler's step $h > 0$ in time
        units. All broadcast.

    **Returns:** $H(t)$, the broadcast shape. Its derivatives are those of the law, not of the
    numerical solution.

    **Raises:** `ValueError` for a negative or non-finite argument; traced values are not checked.
    """
    t, energy = real("t", t, 0.0), real("energy", energy, 0.0)
    frequency = real("frequency", frequency, 0.0, strict=True)
    t, energy, frequency, dt = together(t, energy, frequency, real("dt", dt, 0.0, strict=True))
    return _euler_energy(dt * frequency**2 * t, energy)


def euler_energy_linear(
    n_steps: ArrayLike,
    W: ArrayLike | lx.AbstractLinearOperator,
    x0: ArrayLike,
    dt: ArrayLike,
) -> Float[Array, "..."]:
    r"""Energy of the linear network $x' = W x$ after N steps of forward Euler. Exact, any size.

    $|x_N|^2/2 = \frac12 x_0^T (I + h^2 W^T W)^N x_0 = \frac12 \sum_k |a_k|^2 (1 + h^2 w_k^2)^N$,
    $a_k$ the components of $x_0$ on the eigenvectors of W with eigenvalues $\pm i w_k$. Computed in
    the first form, by repeated squaring: no eigenvectors, so that it is differentiable at repeated
    frequencies as well. Relative error up to N units of rounding.

    **Arguments:**

    - `n_steps`: N, a whole number $\ge 0$ or an array of them, known before tracing.
    - `W`: a skew-symmetric matrix (n, n), or an operator with `as_matrix()`.
    - `x0`: the initial state (n,).
    - `dt`: the step $h > 0$ in time units, a scalar.

    **Returns:** the energy, with the shape of `n_steps`; infinite where it overflows.

    **Raises:** `ValueError` for a matrix that is not skew-symmetric, a wrong shape, a negative or
    non-finite value; `TypeError` for an `n_steps` that is traced or not whole.
    """
    W = skew_matrix("W", W)
    x0, dt = state("x0", x0, W.shape[0]), real("dt", dt, 0.0, strict=True)
    try:
        steps = np.asarray(n_steps)
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            "n_steps must be known before tracing: pass Python or numpy integers"
        ) from None
    if steps.dtype.kind not in "iu":
        raise TypeError(f"n_steps must be a whole number or an array of them, got {n_steps!r}")
    if np.any(steps < 0):
        raise ValueError(f"n_steps must be >= 0, got {n_steps}")
    dtype = jnp.result_type(1.0, W, x0)
    W, x0, dt = W.astype(dtype), x0.astype(dtype), jnp.asarray(dt, dtype)
    if dt.shape != ():
        raise ValueError(f"dt must be a scalar, got shape {dt.shape}")

    def product(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    flat = steps.reshape(-1)
    step = dt * W
    power = jnp.eye(W.shape[0], dtype=dtype) + product(step.T, step)
    rows = jnp.broadcast_to(x0[None, :], (flat.size, x0.size))
    bits = int(flat.max(initial=0)).bit_length()
    for bit in range(bits):
        taken = (flat >> bit) & 1 == 1
        rows = jnp.where(taken[:, None], product(rows, power), rows)
        if bit < bits - 1:
            power = product(power, power)
    return (product(rows, x0) / 2).reshape(steps.shape)


def euler_max_step(
    energy_gain: ArrayLike, t1: ArrayLike, n: int, norm: ArrayLike
) -> Float[Array, "..."]:
    r"""Largest step at which forward Euler is sure to gain less than an energy by time t1. A bound.

    For activations with $0 \le s' \le 1$ and $|s| \le 1$ (tanh and its like) one step gains at most
    $(h^2/2)\, n |W|_2^2$, whatever the state; hence $h = 2\,\Delta H/(t_1\, n |W|_2^2)$. The true
    gain is often far smaller (`euler_energy` gives it for two units): this step is safe, not sharp.

    **Arguments:**

    - `energy_gain`: $\Delta H > 0$ allowed over the whole run.
    - `t1`: its length $> 0$ in time units.
    - `n`: number of units.
    - `norm`: $|W|_2 > 0$, the largest frequency of W, in radians per time unit.

    **Returns:** the step, in the broadcast shape of the arguments.

    **Raises:** `ValueError` for an argument that is not positive and finite; traced values are not
    checked.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of units, at least 1, got {n!r}")
    energy_gain = real("energy_gain", energy_gain, 0.0, strict=True)
    t1, norm = real("t1", t1, 0.0, strict=True), real("norm", norm, 0.0, strict=True)
    energy_gain, t1, norm = together(energy_gain, t1, norm)
    return 2 * energy_gain / (t1 * n * norm**2)
