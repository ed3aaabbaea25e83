"""The tones of a measured signal: frequencies, amplitudes and phases by nonlinear least squares."""

import dataclasses

import numpy as np

from .signals import Signal

# A trial spectrum this many times finer than the resolution 2 pi / duration puts its peak well
# inside the basin of the least-squares problem.
OVERSAMPLING = 8
# Residuals below this fraction of the signal are rounding.
ROUNDING = 1e-13
MAX_ITERATIONS = 60


@dataclasses.dataclass(frozen=True)
class Tones:
    """y_c(t) = offset_c + sum_k amplitude_kc cos(omega_k (t - t_0) + phase_kc), strongest first.

    `omega` (k,) in radians per time unit; `amplitude` and `phase` (k, m); `offset` (m,); t_0 the
    first sample; `residual`, what is left, as a fraction of the rms about the mean.
    """

    omega: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    offset: np.ndarray
    residual: float


def find_tones(signal: Signal, count: int) -> Tones:
    r"""The strongest tones of a signal, whatever its sampling.

    One tone after the other is taken from the peak of the residual's spectrum, and after each all
    frequencies are refined together: Gauss-Newton on $\min_C |y - A(\omega) C|^2$ with the linear
    part eliminated (variable projection, Golub and Pereyra 1973, with Kaufman's Jacobian), which
    is the maximum likelihood estimate in white noise and exact where the signal is a sum of tones.
    A tone must pay for itself by the Bayesian information criterion, a frequency counting as three
    parameters (Djuric 1996).

    **Arguments:** `signal`; `count`, the most tones to look for.

    **Returns:** at least one tone and at most `count`.

    **Raises:** ValueError for a signal that is constant in every channel.
    """
    ts, values, mask = signal.ts - signal.ts[0], signal.values.astype(np.float64), signal.mask
    weights = mask.astype(np.float64)
    measured = weights.sum(0)
    mean = (weights * values).sum(0) / measured
    scale = np.sqrt((weights * (values - mean) ** 2).sum(0) / measured)
    if not np.any(scale > 0):
        raise ValueError("the signal is constant: it has no tones.")
    # A constant channel has no tones, and counts for nothing.
    scale = np.where(scale > 0, scale, 1.0)
    problem = _Projection(ts, weights * (values - mean) / scale, weights)
    omega = np.zeros(0)
    fitted = problem.solve(omega)
    total, n, m = fitted.cost, weights.sum(), values.shape[1]
    score = n * np.log(total)
    for _ in range(count):
        start = problem.peak(fitted.residual)
        trial = problem.refine(np.append(omega, start))
        if trial is None or len(trial.omega) * (2 * m + 1) + m >= n:
            break
        new_score = n * np.log(max(trial.cost, 1e-300)) + np.log(n) * (2 * m + 3) * len(trial.omega)
        if len(omega) and new_score >= score:
            break
        omega, fitted, score = trial.omega, trial, new_score
        if fitted.cost <= (ROUNDING**2) * total:
            break
    k = len(omega)
    cosine, sine = fitted.coefficients[:k], fitted.coefficients[k : 2 * k]
    # Coefficients refer to the middle of the window, where frequency and phase errors part.
    angle = np.arctan2(-sine, cosine) - np.outer(omega, np.full(m, problem.middle))
    amplitude = np.hypot(cosine, sine) * scale
    order = np.argsort(-np.linalg.norm(amplitude / scale, axis=1), kind="stable")
    return Tones(
        omega=omega[order],
        amplitude=amplitude[order],
        phase=np.mod(angle[order] + np.pi, 2 * np.pi) - np.pi,
        offset=mean + fitted.coefficients[-1] * scale,
        residual=float(np.sqrt(fitted.cost / total)),
    )


@dataclasses.dataclass(frozen=True)
class _Fitted:
    omega: np.ndarray
    bases: list[np.ndarray]
    coefficients: np.ndarray
    residual: np.ndarray
    cost: float


class _Projection:
    """min over C of |weights (y - A(omega) C)|^2, A = (cos, sin, 1)."""

    def __init__(self, ts: np.ndarray, values: np.ndarray, weights: np.ndarray):
        self.middle = (ts[0] + ts[-1]) / 2
        self.ts, self.values, self.weights = ts - self.middle, values, weights
        self.span = ts[-1] - ts[0]
        self.gap = float(np.median(np.diff(ts)))
        # Channels that are measured together share one factorisation.
        same = bool(np.all(weights == weights[:, :1]))
        m = values.shape[1]
        self.groups = [np.arange(m)] if same else [np.array([c]) for c in range(m)]

    @property
    def lowest(self) -> float:
        return np.pi / self.span

    @property
    def highest(self) -> float:
        return np.pi / self.gap

    def solve(self, omega: np.ndarray) -> _Fitted:
        angles = np.outer(self.ts, omega)
        design = np.concatenate(
            [np.cos(angles), np.sin(angles), np.ones((len(self.ts), 1))], axis=1
        )
        coefficients = np.zeros((design.shape[1], self.values.shape[1]))
        residual = np.empty_like(self.values)
        bases = []
        for group in self.groups:
            weighted = design * self.weights[:, group[:1]]
            u, s, vh = np.linalg.svd(weighted, full_matrices=False)
            kept = s > 1e-11 * s[0]
            u, s, vh = u[:, kept], s[kept], vh[kept]
            inner = u.T @ self.values[:, group]
            coefficients[:, group] = vh.T @ (inner / s[:, None])
            residual[:, group] = self.values[:, group] - weighted @ coefficients[:, group]
            bases.append(u)
        return _Fitted(omega, bases, coefficients, residual, float((residual**2).sum()))

    def jacobian(self, fitted: _Fitted) -> np.ndarray:
        """d residual / d omega, (t m, k), without the part that C would take up."""
        k = len(fitted.omega)
        angles = np.outer(self.ts, fitted.omega)
        ramps = self.ts[:, None] * np.sin(angles), self.ts[:, None] * np.cos(angles)
        blocks = []
        for group, basis in zip(self.groups, fitted.bases, strict=True):
            w = self.weights[:, group[:1]]
            for c in group:
                slope = fitted.coefficients[k : 2 * k, c] * ramps[1]
                slope = w * (slope - fitted.coefficients[:k, c] * ramps[0])
                blocks.append(slope - basis @ (basis.T @ slope))
        return -np.concatenate(blocks)

    def refine(self, omega: np.ndarray) -> _Fitted | None:
        """The local least-squares frequencies, or None where two of them cannot be told apart."""
        fitted, damping = self.solve(omega), 1e-3
        for _ in range(MAX_ITERATIONS):
            jacobian = self.jacobian(fitted)
            residual = np.concatenate([fitted.residual[:, c] for g in self.groups for c in g])
            gram = jacobian.T @ jacobian
            diagonal = np.maximum(np.diag(gram), 1e-300)
            step = np.linalg.solve(gram + damping * np.diag(diagonal), -jacobian.T @ residual)
            moved = fitted.omega + step
            inside = np.all((moved > self.lowest / 2) & (moved <= self.highest))
            trial = self.solve(moved) if inside else None
            if trial is not None and trial.cost < fitted.cost:
                settled = np.all(np.abs(step) <= 1e-14 * moved)
                settled |= fitted.cost - trial.cost <= 1e-13 * fitted.cost
                fitted, damping = trial, max(damping / 10, 1e-15)
                if settled:
                    break
            else:
                damping *= 10
                if damping > 1e8:
                    break
        apart = np.diff(np.sort(fitted.omega))
        if apart.size and apart.min() < 0.02 * 2 * np.pi / self.span:
            return None
        return fitted

    def peak(self, residual: np.ndarray) -> float:
        """Where the spectrum of the residual, summed over channels, is highest.

        Samples go to the nearest point of a grid a quarter as wide as the median gap (of the gap
        itself where that is uniform): near enough for a start.
        """
        uniform = np.allclose(np.diff(self.ts), self.gap, rtol=1e-6)
        grid = self.gap if uniform else self.gap / 4
        index = np.rint((self.ts - self.ts[0]) / grid).astype(int)
        length = 1 << int(np.ceil(np.log2(OVERSAMPLING * (index[-1] + 1))))
        placed = np.zeros((index[-1] + 1, residual.shape[1]))
        np.add.at(placed, index, residual)
        power = (np.abs(np.fft.rfft(placed, length, axis=0)) ** 2).sum(1)
        omega = 2 * np.pi * np.fft.rfftfreq(length, grid)
        power[(omega < self.lowest) | (omega > self.highest)] = 0.0
        return float(omega[np.argmax(power)])
