"""Tones, spectra and frequency maps against the sums and orbits the signals were made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._analysis.frequencies import frequencies, frequency_map, power_spectrum

N, DT = 1000, 0.1
TS = DT * np.arange(N)
BIN = 2 * np.pi / (N * DT)


def real(omega, amplitude, phase, ts=TS, offset=0.0):
    angle = np.asarray(omega) * ts[:, None] + np.asarray(phase)
    return offset + np.cos(angle) @ np.asarray(amplitude)


def rotating(omega, amplitude, phase, ts=TS):
    return np.exp(1j * (np.asarray(omega) * ts[:, None] + np.asarray(phase))) @ np.asarray(
        amplitude
    )


def check(found, omega, amplitude, phase, rtol=1e-12):
    np.testing.assert_allclose(found.omega, omega, rtol=rtol)
    np.testing.assert_allclose(found.amplitude, amplitude, rtol=100 * rtol)
    np.testing.assert_allclose(np.exp(1j * (np.asarray(found.phase) - phase)), 1, atol=100 * rtol)


def test_two_real_tones():
    tones = [1.2345, 2.718], [2.0, 0.7], [0.3, -2.0]
    found = frequencies(real(*tones, offset=-5.0), DT, 2)
    check(found, *tones)
    assert np.max(np.abs(found.omega - np.array(tones[0]))) < 1e-8 * BIN


def test_two_complex_tones():
    tones = [-1.2345, 0.31], [2.0, 0.7], [0.3, -2.0]
    found = frequencies(rotating(*tones), DT, 2)
    check(found, *tones)
    assert np.max(np.abs(found.omega - np.array(tones[0]))) < 1e-8 * BIN


def test_complex_tones_at_either_end_of_the_band():
    tones = [0.999 * np.pi / DT, -0.97 * np.pi / DT, 0.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    found = frequencies(rotating(*tones), DT, 3)
    np.testing.assert_allclose(found.omega, tones[0], atol=1e-11)
    np.testing.assert_allclose(found.amplitude, tones[1], rtol=1e-11)


@pytest.mark.parametrize("n", [37, 128, 999])
def test_any_number_of_samples(n):
    tones = [6.0, 14.0], [1.0, 0.5], [1.0, 3.0]
    check(frequencies(real(*tones, ts=DT * np.arange(n)), DT, 2), *tones)


def test_a_weak_tone_beside_a_strong_one():
    tones = [1.2345, 2.718], [1.0, 1e-4], [0.3, -2.0]
    found = frequencies(real(*tones), DT, 2)
    np.testing.assert_allclose(found.omega, tones[0], rtol=1e-11)
    np.testing.assert_allclose(found.amplitude, tones[1], rtol=1e-9)


def test_close_tones():
    tones = [2.0, 2.0 + 3 * BIN], [1.0, 0.9], [0.0, 1.0]
    check(frequencies(real(*tones), DT, 2), *tones)


def test_tones_beyond_k_leak_little():
    signal = real([2.0, 2.0 + 20 * BIN], [1.0, 0.5], [0.0, 1.0])
    error = frequencies(signal, DT, 1).omega[0] - 2.0
    assert 0 < abs(error) < 1e-3 * BIN


def test_fewer_tones_than_asked_for():
    tones = [1.2345, 2.718], [2.0, 0.7], [0.3, -2.0]
    found = frequencies(real(*tones), DT, 6)
    check(type(found)(*(v[:2] for v in found)), *tones)
    assert np.all(np.isfinite(found)) and np.all(found.amplitude[2:] < 1e-13)
    found = frequencies(rotating(*tones), DT, 6)
    check(type(found)(*(v[:2] for v in found)), *tones)
    assert np.all(np.isfinite(found)) and np.all(found.amplitude[2:] < 1e-13)


def test_an_orbit_of_two_tanh_units():
    """tanh x2 = -sum A_n sin((2n + 1) w t): A_n cos(. + pi/2), whatever the sign of the sum."""
    energy, w = 1.5, 1.3
    x = jd.orbit(DT * np.arange(2000), energy, w)
    found = frequencies(jnp.tanh(x[:, 1]), DT, 5)
    base = 2 * np.pi / jd.period(energy, w)
    np.testing.assert_allclose(found.omega / base, [1, 3, 5, 7, 9], rtol=1e-7)
    np.testing.assert_allclose(found.omega[0], base, rtol=1e-12)
    np.testing.assert_allclose(found.amplitude, jd.harmonics(energy, w, k=5), rtol=1e-5)
    np.testing.assert_allclose(found.phase, np.pi / 2, atol=1e-4)


def test_noise_costs_what_it_must():
    """var(omega) >= 24 sigma^2 / (A^2 dt^2 N (N^2 - 1)) (Rife and Boorstyn 1974), times 2.34 for
    the Hann window: int x^2 dx int x^2 chi^2 dx / (int x^2 chi dx)^2 over (-1/2, 1/2)."""
    sigma, omega = 0.3, 2.3
    noise = sigma * np.random.default_rng(0).standard_normal((200, N))
    found = frequencies(real([omega], [1.0], [0.4])[None] + noise, DT).omega[:, 0]
    bound = np.sqrt(24 * sigma**2 / (DT**2 * N * (N**2 - 1)))
    # Four standard deviations of the rms of 200 normal numbers.
    assert np.sqrt(np.mean((found - omega) ** 2)) / bound == pytest.approx(1.53, rel=0.2)


def test_single_precision():
    tones = [1.2345, 2.718], [2.0, 0.7], [0.3, -2.0]
    found = frequencies(jnp.asarray(real(*tones), jnp.float32), DT, 3)
    assert found.omega.dtype == jnp.float32
    np.testing.assert_allclose(found.omega[:2], tones[0], rtol=2e-6)
    assert np.all(np.isfinite(found)) and found.amplitude[2] < 1e-5


def test_batches_jit_and_vmap_agree():
    signals = jnp.stack(
        [real([w, 2.5], [1.0, a], [0.0, 1.0]) for w, a in ((1.1, 0.5), (1.7, 2.0), (3.3, 0.0))]
    )
    batch = frequencies(signals, DT, 2)
    assert batch.omega.shape == (3, 2)
    # The last has one tone, and the other is of rounding.
    np.testing.assert_allclose(batch.omega[:, 0], [1.1, 2.5, 3.3], rtol=1e-12)
    for other in (
        jax.vmap(lambda y: frequencies(y, DT, 2))(signals),
        jax.jit(lambda y, dt: frequencies(y, dt, 2))(signals, DT),
    ):
        np.testing.assert_allclose(other.omega[:2], batch.omega[:2], rtol=1e-13)
        np.testing.assert_allclose(other.amplitude, batch.amplitude, atol=1e-13)
    alone = frequencies(signals[0], DT, 2)
    np.testing.assert_allclose(alone.omega, batch.omega[0], rtol=1e-13)


def test_derivatives_where_tones_are_left_out():
    clean = jnp.asarray(real([1.2, 2.0, 4.0], [1.0, 0.5, 0.3], [0.0, 1.0, 2.0], TS[:300]))
    noise = np.random.default_rng(1).standard_normal((2, 300))
    signal, along = clean + 0.1 * jnp.asarray(noise[0]), jnp.asarray(noise[1])

    def value(e):
        found = frequencies(signal + e * along, DT, 2)
        return jnp.concatenate([found.omega, found.amplitude, found.phase])

    h = 1e-4
    difference = (value(h) - value(-h)) / (2 * h)
    np.testing.assert_allclose(jax.jacfwd(value)(0.0), difference, rtol=1e-5)
    np.testing.assert_allclose(jax.jacrev(value)(0.0), difference, rtol=1e-5)


@pytest.mark.parametrize("n", [400, 401])
@pytest.mark.parametrize("imaginary", [False, True])
def test_parseval_on_white_noise(n, imaginary):
    draws = np.random.default_rng(0).standard_normal((2, 50, n))
    signal = draws[0] + 1j * draws[1] if imaginary else 3 + draws[0]
    spectrum = power_spectrum(signal, DT)
    step = spectrum.omega[1] - spectrum.omega[0]
    assert spectrum.power.shape == (50, n if imaginary else n // 2 + 1)
    np.testing.assert_allclose(step, 2 * np.pi / (n * DT), rtol=1e-10)
    total = spectrum.power.sum(-1) * step
    chi = 1 + np.cos(2 * np.pi * (np.arange(n) - (n - 1) / 2) / n)
    mean = (signal @ chi / chi.sum())[:, None]
    weighted = np.abs(signal - mean) ** 2 @ chi**2 / np.sum(chi**2)
    np.testing.assert_allclose(total, weighted, rtol=1e-12)
    # 20000 samples of which the window leaves half: standard deviation .014.
    assert np.mean(total) == pytest.approx(1 + imaginary, rel=0.06)


def test_parseval_on_one_tone():
    signal = real([20 * BIN], [3.0], [0.4], offset=2.0)
    spectrum = power_spectrum(signal, DT)
    np.testing.assert_allclose(spectrum.power.sum() * BIN, np.var(signal), rtol=1e-12)
    np.testing.assert_allclose(spectrum.omega[np.argmax(spectrum.power)], 20 * BIN, rtol=1e-12)
    assert spectrum.power[0] < 1e-25
    signal = rotating([-20 * BIN], [3.0], [0.4])
    spectrum = power_spectrum(signal, DT)
    np.testing.assert_allclose(spectrum.power.sum() * BIN, 9.0, rtol=1e-12)
    np.testing.assert_allclose(spectrum.omega[np.argmax(spectrum.power)], -20 * BIN, rtol=1e-12)


def test_frequency_map_tells_order_from_a_chirp():
    tones = [1.2345, 2.718], [2.0, 0.7], [0.3, -2.0]
    signals = np.stack([real(*tones), np.cos(TS + 0.002 * TS**2)])
    found = frequency_map(signals, DT, 2)
    assert found.first.shape == (2, 2) and found.diffusion.shape == (2,)
    assert found.diffusion[0] < -9 and found.diffusion[1] > -3
    np.testing.assert_allclose(found.first[0], tones[0], rtol=1e-11)
    # Mean frequencies of the halves.
    alone = frequency_map(signals[1], DT)
    np.testing.assert_allclose(alone.diffusion, np.log10(0.004 * 50), atol=0.02)
    # More tones than there are change nothing.
    assert frequency_map(signals[0], DT, 5).diffusion < -9


def test_frequency_map_matches_tones_that_change_places():
    growing, fading = 0.5 + TS / TS[-1], 1.5 - TS / TS[-1]
    signal = growing * np.cos(1.5 * TS) + fading * np.cos(3 * TS)
    found = frequency_map(signal, DT, 2)
    np.testing.assert_allclose(found.first, found.omega, atol=0.01)
    np.testing.assert_allclose(found.second, found.first, atol=0.01)
    assert found.diffusion < -2


GOOD = real([2.0], [1.0], [0.0])


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: frequencies("tone", DT), TypeError, "`signal` must be an array"),
        (lambda: frequencies(np.arange(100), DT), TypeError, "`signal` .* float"),
        (lambda: frequencies(np.zeros((2, 2, 100)), DT), ValueError, r"`signal` .* \(b, t\)"),
        (lambda: frequencies(np.zeros((0, 100)), DT), ValueError, "`signal` .* row"),
        (lambda: frequencies(GOOD[:5], DT), ValueError, "`signal` .* 6 samples"),
        (lambda: frequencies(np.where(TS > 5, np.nan, GOOD), DT), ValueError, "`signal` .* finite"),
        (lambda: frequencies(np.ones(100), DT), ValueError, "`signal` is constant"),
        (lambda: frequencies(np.stack([GOOD, 0 * GOOD]), DT), ValueError, "`signal` is constant"),
        (lambda: frequencies(np.cos(0.1 * TS), DT), ValueError, "`signal` .* two periods"),
        (lambda: frequencies(TS, DT), ValueError, "`signal` .* two periods"),
        (lambda: frequency_map(np.cos(3 * BIN * TS), DT), ValueError, "two periods .* half"),
        (lambda: frequencies(GOOD, 0.0), ValueError, "`dt` .* above 0"),
        (lambda: frequencies(GOOD, -DT), ValueError, "`dt` .* above 0"),
        (lambda: frequencies(GOOD, np.inf), ValueError, "`dt` .* finite"),
        (lambda: frequencies(GOOD, "0.1"), TypeError, "`dt` must be a number"),
        (lambda: frequencies(GOOD, TS), ValueError, "`dt` .* uniform"),
        (lambda: power_spectrum(GOOD, TS), ValueError, "`dt` .* uniform"),
        (lambda: frequencies(GOOD, DT, 0), ValueError, "`k` must be between 1 and 249"),
        (lambda: frequencies(GOOD, DT, 250), ValueError, "`k` must be between 1 and 249"),
        (lambda: frequency_map(GOOD, DT, 125), ValueError, "`k` .* 124"),
        (lambda: frequencies(GOOD, DT, 1.0), TypeError, "`k` must be a whole number"),
        (lambda: frequencies(GOOD, DT, True), TypeError, "`k` must be a whole number"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
