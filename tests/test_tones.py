"""Tones of measured signals against the sums they were made of, and against Cramer-Rao bounds."""

import jax.random as jr
import numpy as np
import pytest

from jaxdyn import signals as s
from jaxdyn._train.tones import find_tones

OMEGA = np.array([1.0, 2.3, 3.7])
AMPLITUDE = np.array([[2.0, 1.0, 0.5], [30.0, 50.0, 10.0]])
PHASE = np.array([[0.3, -1.2, 2.0], [1.0, 0.1, -2.9]])
OFFSET = np.array([0.7, -40.0])
UNIFORM = 5.0 + 0.05 * np.arange(400)
IRREGULAR = 5.0 + np.sort(np.random.default_rng(0).uniform(0, 20, 400))


def summed(ts, mask=None):
    """OFFSET + sum of AMPLITUDE cos(OMEGA (t - t_0) + PHASE): (t, 2)."""
    angle = OMEGA * (ts - ts[0])[:, None, None] + PHASE
    values = OFFSET + np.sum(AMPLITUDE * np.cos(angle), axis=-1)
    return s.Signal.of(values, ts=ts, mask=mask)


def check(tones, tolerance):
    order = np.argsort(tones.omega)
    np.testing.assert_allclose(tones.omega[order], OMEGA, rtol=0, atol=tolerance)
    scale = AMPLITUDE.T.max(0)
    np.testing.assert_allclose(tones.amplitude[order] / scale, AMPLITUDE.T / scale, atol=1e-8)
    turn = np.exp(1j * (tones.phase[order] - PHASE.T))
    np.testing.assert_allclose(turn, 1, atol=1e-8)
    np.testing.assert_allclose((tones.offset - OFFSET) / scale.max(), 0, atol=1e-8)
    assert tones.residual < 1e-9


@pytest.mark.parametrize("ts", [UNIFORM, IRREGULAR], ids=["uniform", "irregular"])
def test_exact_on_sums_of_tones(ts):
    check(find_tones(summed(ts), 3), 1e-10)


@pytest.mark.parametrize("ts", [UNIFORM, IRREGULAR], ids=["uniform", "irregular"])
def test_exact_where_each_channel_misses_other_samples(ts):
    signal = summed(ts).drop(0.4, key=jr.key(0))
    assert not np.array_equal(signal.mask[:, 0], signal.mask[:, 1])
    check(find_tones(signal, 3), 1e-10)


def test_a_long_hole_in_the_times():
    kept = (UNIFORM < 10) | (UNIFORM > 17)
    check(find_tones(summed(UNIFORM[kept]), 3), 1e-10)


def test_no_more_tones_than_asked_for_or_than_there_are():
    signal = summed(UNIFORM)
    assert len(find_tones(signal, 1).omega) == 1
    assert len(find_tones(signal, 9).omega) == 3
    # Each channel counts in its own standard deviation, else 2.3 were the strongest.
    tones = find_tones(signal, 2)
    np.testing.assert_allclose(tones.omega, [1.0, 2.3], atol=0.05)


def test_single_precision():
    signal = summed(UNIFORM)
    single = s.Signal.of(signal.values.astype(np.float32), ts=signal.ts)
    # Rounding of 3e-8 a sample, by the Cramer-Rao bound below, leaves 1e-9.
    np.testing.assert_allclose(np.sort(find_tones(single, 3).omega), OMEGA, atol=1e-8)


@pytest.mark.parametrize("channels", [1, 2])
def test_noise_costs_what_it_must(channels):
    """For a tone of amplitude A in white noise var(omega) >= 24 sigma^2 / (A^2 dt^2 N (N^2 - 1)),
    A^2 summed over the channels, and var(A) >= 2 sigma^2 / N (Rife and Boorstyn 1974)."""
    n, dt, omega = 400, 0.05, 2.3
    clean = s.tones([omega], channels=channels, n_samples=n, dt=dt)
    variance = 0.1 * np.var(clean.values, axis=0)
    power = np.sum(1 / variance)
    bound = np.sqrt(24 / (power * dt**2 * n * (n**2 - 1)))
    found = [find_tones(clean.with_noise(10.0, key=key), 1) for key in jr.split(jr.key(0), 40)]
    errors = np.array([tones.omega[0] - omega for tones in found]) / bound
    # The rms of 40 normal numbers lies within 1 +- .45 (four standard deviations).
    assert 0.55 < np.sqrt(np.mean(errors**2)) < 1.45
    assert np.max(np.abs(errors)) < 4
    sizes = np.array([tones.amplitude[0] - 1 for tones in found]) / np.sqrt(2 * variance / n)
    assert np.max(np.abs(sizes)) < 4.5


def test_several_tones_in_noise():
    signal = summed(UNIFORM)
    variance = 0.1 * np.var(signal.values, axis=0)
    power = np.sum(AMPLITUDE**2 / variance[:, None], axis=0)
    bound = np.sqrt(24 / (power * 0.05**2 * 400**3))
    for key in jr.split(jr.key(1), 5):
        tones = find_tones(signal.with_noise(10.0, key=key), 8)
        assert len(tones.omega) == 3
        # Tones a few resolutions apart disturb each other: twice the bound of one.
        assert np.all(np.abs(np.sort(tones.omega) - OMEGA) < 8 * bound)


def test_noise_has_no_tones():
    """One is always returned. False alarms: the criterion asks 5 ln N of twice the gain, which the
    largest of N/2 exponential peaks seldom reaches."""
    rng = np.random.default_rng(0)
    noise = [s.Signal.of(rng.standard_normal((300, 1)), dt=0.1) for _ in range(20)]
    assert all(len(find_tones(signal, 6).omega) == 1 for signal in noise)
    tone = s.tones([2.0], n_samples=300, dt=0.1)
    noisy = [tone.with_noise(3.0, key=key) for key in jr.split(jr.key(2), 20)]
    assert [len(find_tones(signal, 6).omega) for signal in noisy] == [1] * 20


@pytest.mark.parametrize("apart", [1.5, 0.6])
def test_two_close_tones(apart):
    """Closer than the resolution 2 pi / T, where the spectrum shows one peak."""
    omega = 2.0 + np.array([0.0, apart * 2 * np.pi / 20])
    signal = s.tones(omega, channels=2, ts=UNIFORM)
    tones = find_tones(signal, 2)
    np.testing.assert_allclose(np.sort(tones.omega), omega, atol=1e-8)


def test_overtones_of_van_der_pol_are_odd():
    """x'' = (1 - x^2) x' - x has period 6.6632868593 (mu = 1) and no even harmonics."""
    signal = s.van_der_pol(1.0, n_samples=1500, dt=0.1)
    tones = find_tones(signal, 4)
    base = 2 * np.pi / 6.6632868593
    np.testing.assert_allclose(tones.omega[0], base, rtol=1e-4)
    np.testing.assert_allclose(tones.omega / base, [1, 3, 5, 7], rtol=1e-3)
