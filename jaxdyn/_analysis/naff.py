"""Numerical analysis of fundamental frequencies: tones as a windowed least-squares problem."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# In the units below neighbouring bins of the Fourier transform lie pi apart.
_BIN = math.pi
_PADDING = 4
_MAX_STEPS = 60
_dot = functools.partial(jnp.matmul, precision="highest")


class Frequencies(NamedTuple):
    r"""Tones of a signal, strongest first; t counts from the first sample.

    `omega` (..., k), radians per time unit; `amplitude` (..., k), at least 0; `phase` (..., k) in
    $(-\pi, \pi]$.
    """

    omega: Float[Array, "*b k"]
    amplitude: Float[Array, "*b k"]
    phase: Float[Array, "*b k"]


def hann(n: int) -> np.ndarray:
    """Of sum 1."""
    return (1 + np.cos(2 * np.pi * from_middle(n) / n)) / n


def from_middle(n: int) -> np.ndarray:
    return np.arange(n) - (n - 1) / 2


class Problem(NamedTuple):
    """min over z of sum chi (y - model(z))^2 / 2, z = (phi (k), a (k), b (k), offset).

    A tone is (a + ib) exp(i phi s), s = u / (N / 2) in (-1, 1), of which a real signal has the real
    part. Rows of y are real and imaginary part. A complex signal's offset is 0.
    """

    y: Float[Array, "c t"]
    s: Float[Array, " t"]
    chi: Float[Array, " t"]

    @property
    def is_real(self) -> bool:
        return self.y.shape[0] == 1

    @property
    def top(self) -> float:
        """phi of the Nyquist frequency."""
        return self.s.shape[0] * _BIN / 2

    @property
    def eps(self) -> float:
        return float(jnp.finfo(self.y.dtype).eps)

    def residual(self, z: Array) -> Array:
        cos, sin, a, b = self.waves(z)
        real = _dot(cos, a) - _dot(sin, b) + z[-1]
        if self.is_real:
            return self.y - real[None, :]
        return self.y - jnp.stack([real, _dot(sin, a) + _dot(cos, b)])

    def cost(self, z: Array) -> Array:
        return jnp.sum(self.chi[None, :] * self.residual(z) ** 2) / 2

    def waves(self, z: Array) -> tuple[Array, Array, Array, Array]:
        phi, a, b = z[:-1].reshape(3, -1)
        angle = self.s[:, None] * phi[None, :]
        return jnp.cos(angle), jnp.sin(angle), a, b

    def jacobian(self, z: Array, size: Array) -> Array:
        """d model / d (size phi, a, b, offset), (c t, p)."""
        cos, sin, a, b = self.waves(z)
        a, b, ramp = (a / size)[None, :], (b / size)[None, :], self.s[:, None]
        ones = jnp.ones_like(ramp)
        real = jnp.concatenate([-ramp * (a * sin + b * cos), cos, -sin, ones], axis=1)
        if self.is_real:
            return real
        slope = ramp * (a * cos - b * sin)
        return jnp.concatenate(
            [real, jnp.concatenate([slope, sin, cos, jnp.zeros_like(ramp)], axis=1)]
        )

    def size(self, z: Array) -> Array:
        _, a, b = z[:-1].reshape(3, -1)
        return jnp.maximum(jnp.hypot(a, b), jnp.finfo(z.dtype).tiny ** 0.5)

    def normal(self, z: Array, size: Array) -> tuple[Array, Array]:
        """J^T chi J and J^T chi residual."""
        jacobian = self.jacobian(z, size)
        weighted = (jnp.tile(self.chi, self.y.shape[0])[:, None] * jacobian).T
        return _dot(weighted, jacobian), _dot(weighted, self.residual(z).ravel())

    def bend(self, z: Array, size: Array) -> Array:
        """sum chi residual d^2 model: not 0 only within a tone, and there in rows with phi."""
        cos, sin, a, b = self.waves(z)
        k = len(a)
        first = self.residual(z) * (self.chi * self.s)[None, :]
        second = first * self.s[None, :]

        def project(rows):
            along, across = _dot(rows[0], cos), -_dot(rows[0], sin)
            if self.is_real:
                return along, across
            return along + _dot(rows[1], sin), across + _dot(rows[1], cos)

        (along, across), (along2, across2) = project(first), project(second)
        j = np.arange(k)
        upper = jnp.zeros((len(z), len(z)), z.dtype)
        upper = upper.at[j, j].set(-(a * along2 + b * across2) / (2 * size**2))
        upper = upper.at[j, k + j].set(across / size).at[j, 2 * k + j].set(-along / size)
        return upper + upper.T

    def rounding(self, z: Array, active: Array) -> Array:
        """The rounding of one sample of the model, for a signal of size 1."""
        return self.eps * (1 + jnp.max(jnp.where(active, jnp.abs(z[: len(active)]), 0.0)))

    def free(self, active: Array) -> Array:
        return jnp.concatenate([active, active, active, jnp.asarray([self.is_real])])

    def solve(self, matrix: Array, rhs: Array, active: Array) -> Array:
        """matrix^-1 rhs over the free unknowns, and 0 for the others."""
        free = self.free(active)
        eye = jnp.eye(len(rhs), dtype=rhs.dtype)
        ridge = self.eps * jnp.max(jnp.abs(jnp.diagonal(matrix)))
        matrix = jnp.where(free[:, None] & free[None, :], matrix + ridge * eye, eye)
        return jnp.linalg.solve(matrix, jnp.where(free, rhs, 0.0))

    def refine(self, z: Array, active: Array, last: Array) -> Array:
        """Levenberg-Marquardt over the active tones; roughly, unless all tones are there."""
        enough = jnp.where(last, self.eps**0.75, 1e-3)
        k = len(active)
        low = _BIN / 2 if self.is_real else -math.inf
        high = self.top if self.is_real else math.inf

        def step(state):
            z, cost, damping, _, count = state
            size = self.size(z)
            gram, rhs = self.normal(z, size)
            gram = gram + damping * jnp.diag(jnp.diagonal(gram))
            move = self.solve(gram, rhs, active)
            turn = jnp.clip(move[:k] / size, -_BIN / 2, _BIN / 2)
            phi = jnp.where(active, jnp.clip(z[:k] + turn, low, high), z[:k])
            trial = jnp.concatenate([phi, z[k:] + move[k:]])
            noise = self.rounding(z, active)
            settled = jnp.max(jnp.abs(move)) <= 4 * noise
            new = self.cost(trial)
            # What is left in the end, the Newton step finds.
            settled = settled | (jnp.abs(new - cost) <= enough * cost)
            better = new <= cost + noise**2
            z, cost = jnp.where(better, trial, z), jnp.where(better, new, cost)
            damping = jnp.where(better, damping / 30, damping * 10)
            return z, cost, damping, settled | (damping > 1e8), count + 1

        def going(state):
            return ~state[3] & (state[4] < _MAX_STEPS)

        start = z, self.cost(z), jnp.asarray(1e-4, z.dtype), jnp.asarray(False), jnp.asarray(0)
        return jax.lax.while_loop(going, step, start)[0]

    def newton(self, z: Array, active: Array) -> Array:
        """One Newton step from the minimum: nothing but rounding, with the minimum's derivative
        in y."""
        z = jax.lax.stop_gradient(z)
        fixed = jax.lax.stop_gradient(self)
        size = fixed.size(z)
        scale = jnp.concatenate([1 / size, jnp.ones_like(z[len(size) :])])
        hessian = fixed.normal(z, size)[0] - fixed.bend(z, size)
        move = self.solve(hessian, self.normal(z, size)[1], active)
        small = jnp.max(jnp.abs(move)) < 1e-3
        move = jnp.where(self.free(active) & small, move, 0.0)
        return z + move * jnp.where(self.free(active), scale, 1.0)

    def next_tone(self, j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        """Tone j from the peak of the residual, and the tones so far refined together."""
        z, active = state
        k, n = len(active), self.s.shape[0]
        residual = self.residual(z) * self.chi[None, :]
        length = 1 << math.ceil(math.log2(_PADDING * n))
        if self.is_real:
            spectrum, turns = jnp.fft.rfft(residual[0], length), np.fft.rfftfreq(length)
        else:
            values = jax.lax.complex(residual[0], residual[1])
            spectrum, turns = jnp.fft.fft(values, length), np.fft.fftfreq(length)
        # The grid ends at turns = 1/2, the Nyquist frequency.
        grid = jnp.asarray(2 * self.top * turns, z.dtype)
        gap = jnp.abs(grid[:, None] - z[None, :k])
        gap = jnp.minimum(gap, jnp.abs(2 * self.top - gap))
        taken = jnp.any((gap < _BIN) & active[None, :], axis=1)
        if self.is_real:
            taken = taken | (grid < _BIN)
        power = spectrum.real**2 + spectrum.imag**2
        phi = grid[jnp.argmax(jnp.where(taken, -1.0, power))]
        cos, sin = jnp.cos(self.s * phi), jnp.sin(self.s * phi)
        if self.is_real:
            a, b = 2 * jnp.sum(residual[0] * cos), -2 * jnp.sum(residual[0] * sin)
        else:
            a = jnp.sum(residual[0] * cos + residual[1] * sin)
            b = jnp.sum(residual[1] * cos - residual[0] * sin)
        z = z.at[j].set(phi).at[k + j].set(a).at[2 * k + j].set(b)
        noise = self.eps + self.rounding(z, active.at[j].set(True)) / math.sqrt(n)
        active = active.at[j].set(jnp.hypot(a, b) > 8 * noise)
        return self.refine(z, active, j == k - 1), active


@functools.partial(jax.jit, static_argnames="k")
def tones(signal: Array, dt: Float[Array, ""], k: int) -> tuple[Frequencies, Bool[Array, " k"]]:
    """The tones, and which of them are more than rounding."""
    n, dtype = signal.shape[0], dt.dtype
    rows = [signal.real, signal.imag] if jnp.iscomplexobj(signal) else [signal]
    y = jnp.stack(rows)
    scale = jnp.max(jnp.abs(jax.lax.stop_gradient(y)))
    scale = jnp.where(scale > 0, scale, 1.0)
    u, chi = jnp.asarray(from_middle(n), dtype), jnp.asarray(hann(n), dtype)
    problem = Problem(y / scale, u / (n / 2), chi)
    fixed = jax.lax.stop_gradient(problem)
    z = jnp.zeros(3 * k + 1, dtype)
    if problem.is_real:
        z = z.at[-1].set(jnp.sum(chi * fixed.y[0]))
    z, active = jax.lax.fori_loop(0, k, fixed.next_tone, (z, jnp.zeros(k, bool)))
    phi, a, b = problem.newton(z, active)[:-1].reshape(3, k)
    theta = phi / (n / 2)
    phase = _wrapped(jnp.arctan2(b, a) + theta * u[0])
    theta = theta if problem.is_real else _wrapped(theta)
    amplitude = jnp.hypot(a, b) * scale
    order = jnp.argsort(-amplitude)
    found = Frequencies(theta[order] / dt, amplitude[order], phase[order])
    return found, active[order]


def _wrapped(angle: Array) -> Array:
    """In (-pi, pi]."""
    return angle - 2 * math.pi * jax.lax.stop_gradient(jnp.ceil(angle / (2 * math.pi) - 0.5))
