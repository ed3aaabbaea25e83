"""Naive forecasters, which a fit must beat: in NumPy on the host, for regular sampling.

Each takes samples (t, m) and continues them for n_ahead samples more. Where `mask` (t, m) is False
a sample was not measured and its value is ignored.
"""

import operator
from typing import Any, NamedTuple

import numpy as np

# An autoregression that blows up stops here, where squares and their sums are still finite.
HUGE = 1e150


def last_value(values: Any, n_ahead: int, *, mask: Any = None) -> np.ndarray:
    r"""Nothing changes: $\hat y_{t+j} = y_t$, the last measured sample of each channel.

    **Arguments:** `values`, samples (t, m); `n_ahead`, how many to forecast; `mask` (t, m), False
    where a sample was not measured.

    **Returns:** the forecast (n_ahead, m).

    **Raises:** ValueError for another shape, values that are not finite where they were measured,
    or a channel without a measured sample.
    """
    values, mask = _checked(values, mask)
    last = len(values) - 1 - np.argmax(mask[::-1], axis=0)
    return np.repeat(values[last, np.arange(values.shape[1])][None], _count(n_ahead), axis=0)


def seasonal(values: Any, n_ahead: int, period: float | int, *, mask: Any = None) -> np.ndarray:
    r"""The last whole period again and again.

    $\hat y_{t+j} = y_{t + j - k P}$ with $k = \lceil j / P \rceil$, between samples (P need not be
    whole) by linear interpolation. What was not measured is the mean of what was measured at the
    same phase, in bins of one sample; where that is nothing, the channel's mean.

    **Arguments:** `values`, samples (t, m); `n_ahead`, how many to forecast; `period` P, in
    samples, for instance from [`season`][]; `mask` (t, m), False where a sample was not measured.

    **Returns:** the forecast (n_ahead, m).

    **Raises:** ValueError for a period that is not in [1, t], and as [`last_value`][].
    """
    values, mask = _checked(values, mask)
    ahead = np.arange(1, _count(n_ahead) + 1)
    t = len(values)
    # Compared so that NaN is refused.
    if not 1 <= period <= t:
        raise ValueError(f"`period` must be in [1, {t}], in samples, got {period!r}.")
    values = _filled_by_phase(values, mask, float(period))
    # Rounding must not make j / P of a whole multiple a little more than whole.
    back = np.ceil(ahead / period - 1e-9) * period
    return np.stack([np.interp(t - 1 + ahead - back, np.arange(t), y) for y in values.T], axis=1)


def season(values: Any, *, mask: Any = None) -> float:
    r"""The period for [`seasonal`][], in samples, from the autocorrelation.

    $c(k) = \langle y_i \cdot y_{i+k} \rangle$ of the standardised channels over pairs of measured
    samples. Of its maxima between the first negative c and lag t / 2, the first that is at least
    nine tenths of the largest, so that multiples of a period are not taken for it; refined by the
    parabola through its neighbours. Where there is none, t / 2.

    **Arguments:** `values`, samples (t, m); `mask` (t, m), False where a sample was not measured.

    **Returns:** the period, in [1, t].

    **Raises:** ValueError as [`last_value`][].
    """
    values, mask = _checked(values, mask)
    t = len(values)
    mean, scale = _standard(values, mask)
    y = np.where(mask, (values - mean) / scale, 0.0)
    size = 2 * t
    power = np.abs(np.fft.rfft(np.stack([y, mask.astype(float)]), size, axis=1)) ** 2
    c, pairs = np.sum(np.fft.irfft(power, size, axis=1), axis=-1)[:, : t // 2 + 2]
    c = c / np.maximum(pairs, 1.0)
    top = (c[1:-1] > 0) & (c[1:-1] >= c[:-2]) & (c[1:-1] > c[2:])
    peaks = 1 + np.flatnonzero(top & np.logical_or.accumulate(c < 0)[1:-1])
    if not peaks.size:
        return max(1.0, t / 2)
    k = peaks[np.argmax(c[peaks] >= 0.9 * np.max(c[peaks]))]
    return float(k + 0.5 * (c[k - 1] - c[k + 1]) / (c[k - 1] - 2 * c[k] + c[k + 1]))


def autoregression(
    values: Any, n_ahead: int, max_order: int | None = None, *, mask: Any = None
) -> np.ndarray:
    r"""The autoregression of [`fit_autoregression`][], iterated: an unstable one may blow up.

    **Arguments:** `values`, samples (t, m); `n_ahead`, how many to forecast; `max_order` and `mask`
    as in [`fit_autoregression`][].

    **Returns:** the forecast (n_ahead, m), held within +-1e150.

    **Raises:** ValueError as [`fit_autoregression`][].
    """
    n_ahead = _count(n_ahead)
    return fit_autoregression(values, max_order, mask=mask).forecast(values, n_ahead, mask=mask)


class Autoregression(NamedTuple):
    r"""$y_k = c + \sum_{i=1}^p A_i y_{k-i}$: `intercept` c (m,), and `lags`, A_1 first, (p, m, m).

    `parameters`: how many numbers were fitted.
    """

    intercept: np.ndarray
    lags: np.ndarray
    parameters: int

    @property
    def order(self) -> int:
        return len(self.lags)

    def fitted(self, values: Any, *, mask: Any = None) -> np.ndarray:
        """Each sample (t, m) from those before it; the first p, which have too few, as they are.

        Before and instead of samples that were not measured stand the forecasts of them (among the
        first p the channel's mean).
        """
        return self._run(*_checked(values, mask), 0)

    def forecast(self, values: Any, n_ahead: int, *, mask: Any = None) -> np.ndarray:
        """What follows `values` (t, m): (n_ahead, m), held within +-1e150."""
        n_ahead = _count(n_ahead)
        return self._run(*_checked(values, mask), n_ahead)[-n_ahead:]

    def _run(self, values: np.ndarray, mask: np.ndarray, n_ahead: int) -> np.ndarray:
        t, m = values.shape
        p = self.order
        mean, _ = _standard(values, mask)
        known = np.concatenate([np.where(mask, values, mean), np.zeros((n_ahead, m))])
        measured = np.concatenate([mask, np.zeros((n_ahead, m), bool)])
        out = known.copy()
        # The oldest lag first, as the samples stand in memory.
        A = np.moveaxis(self.lags[::-1], 0, 1).reshape(m, p * m)
        with np.errstate(over="ignore"):
            for k in range(p, t + n_ahead):
                out[k] = np.clip(self.intercept + A @ known[k - p : k].ravel(), -HUGE, HUGE)
                known[k] = np.where(measured[k], known[k], out[k])
        return out


def fit_autoregression(
    values: Any, max_order: int | None = None, *, mask: Any = None
) -> Autoregression:
    r"""An autoregression with intercept by least squares, its order chosen by Akaike's criterion.

    $y_k = c + \sum_{i=1}^p A_i y_{k-i} + e_k$, a vector autoregression for m > 1. The order p is
    the least of $N \log\det\hat\Sigma + 2 m (1 + p m)$ (Luetkepohl, New Introduction to Multiple
    Time Series Analysis, 2005, section 4.3), where Sigma is the mean square of the residuals over
    the N rows that every order up to `max_order` can use; the residuals of an exact fit count as
    rounding, so that the smallest exact order is taken. It is then fitted to all rows it can use.
    Rows with an unmeasured sample in their window are left out. Where an equation of `max_order`
    would have more unknowns than rows, each channel gets an autoregression of its own.

    **Arguments:**

    - `values`: samples (t, m), t >= 3.
    - `max_order`: the largest p, at least 1. Default: min(40, (t - 1) // (3 m)), at least 1.
    - `mask`: (t, m), False where a sample was not measured.

    **Returns:** the [`Autoregression`][].

    **Raises:** ValueError for fewer than 3 samples, a mask that leaves fewer than two rows even for
    order 1, a `max_order` that is not a whole number of at least 1, and as [`last_value`][].
    """
    values, mask = _checked(values, mask)
    t, m = values.shape
    if t < 3:
        raise ValueError(f"an autoregression needs at least 3 samples, got {t}.")
    if max_order is None:
        max_order = max(1, min(40, (t - 1) // (3 * m)))
    max_order = min(_count(max_order, "max_order"), t - 2)
    mean, scale = _standard(values, mask)
    y = np.where(mask, (values - mean) / scale, 0.0)
    if m == 1 or len(_rows(mask, max_order)) > 1 + max_order * m:
        intercept, lags = _chosen(y, mask, max_order)
        count = m * (1 + m * len(lags))
    else:
        alone = [_chosen(y[:, [i]], mask[:, [i]], max_order) for i in range(m)]
        intercept = np.concatenate([c for c, _ in alone])
        lags = np.zeros((max(len(a) for _, a in alone), m, m))
        for i, (_, a) in enumerate(alone):
            lags[: len(a), i, i] = a[:, 0, 0]
        count = sum(1 + len(a) for _, a in alone)
    lags = lags * (scale[:, None] / scale)
    return Autoregression(mean + scale * intercept - np.sum(lags, axis=0) @ mean, lags, count)


def _chosen(y: np.ndarray, mask: np.ndarray, max_order: int) -> tuple[np.ndarray, np.ndarray]:
    """Intercept (m,) and lags (p, m, m) of the order that Akaike's criterion chooses."""
    while max_order > 1 and len(_rows(mask, max_order)) <= 1 + max_order * y.shape[1]:
        max_order -= 1
    rows = _rows(mask, max_order)
    if len(rows) < 2:
        raise ValueError(
            "`mask` leaves fewer than two pairs of neighbouring measured samples to fit an "
            "autoregression to."
        )
    m, count = y.shape[1], len(rows)
    # The columns of lower orders come first: one QR has the residuals of all orders below R's rows.
    R = np.linalg.qr(np.concatenate(_design(y, max_order, rows), axis=1), mode="r")
    # Of values of size one: least squares leave about so much of an exact fit.
    floor = (count * np.finfo(float).eps) ** 2
    scores = []
    for p in range(1, max_order + 1):
        residual = R[1 + p * m :, -m:]
        variances = np.linalg.eigvalsh(residual.T @ residual / count)
        fit = count * np.sum(np.log(np.maximum(variances, floor)))
        scores.append(fit + 2 * m * (1 + p * m))
    p = 1 + int(np.argmin(scores))
    design, target = _design(y, p, _rows(mask, p))
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    return solution[0], np.swapaxes(solution[1:].reshape(p, m, m), 1, 2)


def _rows(mask: np.ndarray, p: int) -> np.ndarray:
    """Indices of the samples which were measured together with the p before them."""
    whole = np.lib.stride_tricks.sliding_window_view(np.all(mask, axis=1), p + 1)
    return p + np.flatnonzero(np.all(whole, axis=1))


def _design(y: np.ndarray, p: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lagged = [y[rows - i] for i in range(1, p + 1)]
    return np.concatenate([np.ones((len(rows), 1)), *lagged], axis=1), y[rows]


def _filled_by_phase(values: np.ndarray, mask: np.ndarray, period: float) -> np.ndarray:
    if np.all(mask):
        return values
    phase = np.floor(np.mod(np.arange(len(values)), period)).astype(int)
    bins = np.zeros((phase.max() + 1, values.shape[1]))
    count = bins.copy()
    np.add.at(bins, phase, np.where(mask, values, 0.0))
    np.add.at(count, phase, mask)
    means = np.where(count > 0, bins / np.maximum(count, 1), _standard(values, mask)[0])
    return np.where(mask, values, means[phase])


def _standard(values: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (m,) of what was measured; 1 for what is constant."""
    count = np.sum(mask, axis=0)
    mean = np.sum(np.where(mask, values, 0.0), axis=0) / count
    scale = np.sqrt(np.sum(np.where(mask, values - mean, 0.0) ** 2, axis=0) / count)
    return mean, np.where(scale > 0, scale, 1.0)


def _checked(values: Any, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """`values` as float64, 0 where they were not measured, and the mask as bool."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape or values.dtype.kind not in "iuf":
        raise ValueError(
            f"`values` must be real samples (t, m); got shape {values.shape}, dtype "
            f"{values.dtype}. One channel has shape (t, 1)."
        )
    mask = np.ones(values.shape, bool) if mask is None else np.asarray(mask)
    if mask.shape != values.shape or mask.dtype != bool:
        raise ValueError(
            f"`mask` must be bool of shape {values.shape}, True where a sample was measured; got "
            f"shape {mask.shape}, dtype {mask.dtype}."
        )
    values = np.where(mask, values.astype(np.float64), 0.0)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            "`values` hold NaN or infinity: give `mask`, False where a sample is missing."
        )
    empty = np.flatnonzero(~np.any(mask, axis=0))
    if empty.size:
        raise ValueError(f"channels {empty.tolist()} have no measured sample: leave them out.")
    return values, mask


def _count(n: Any, name: str = "n_ahead") -> int:
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if count < 1 or isinstance(n, bool):
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {n!r}.")
    return count
