"""Closed forms against THEORY's digits, scipy's special functions, and integration by scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline

import jaxdyn as jd

LN2 = np.log(2.0)
# From the rest point past both switches of the implementation (H = ln 2 / 2 and H = 7) to energies
# whose 1 - m underflows.
ENERGIES = np.array(
    [0.0, 1e-30, 1e-8, 1e-3, 0.3, 0.34657, 0.34658, 1, 2, 5, 6.999, 7, 7.001, 50, 500]
)


def energy_of(x):
    return np.sum(np.logaddexp(x, -x) - LN2, axis=-1)


def pair_field(x, frequency):
    s = np.tanh(x)
    return frequency * np.stack([s[..., 1], -s[..., 0]], axis=-1)


def pair_flow(times, x, frequency):
    solution = solve_ivp(
        lambda _, y: pair_field(y, frequency),
        (0.0, times[-1]),
        x,
        "DOP853",
        times,
        rtol=1e-13,
        atol=1e-15,
    )
    return solution.y.T


def pair_variation(x, frequency, end, rate=0.0, shell=0.0):
    """Derivative of the flow of the pair, with an energy shell if rate is not 0, by DOP853."""
    W = frequency * np.array([[0.0, 1.0], [-1.0, 0.0]])

    def field(_, z):
        y, M = z[:2], z[2:].reshape(2, 2)
        g, excess = np.tanh(y), rate * (energy_of(y) - shell)
        jacobian = (W - excess * np.eye(2)) @ np.diag(1 - g**2) - rate * np.outer(g, g)
        return np.concatenate([W @ g - excess * g, (jacobian @ M).ravel()])

    start = np.concatenate([x, np.eye(2).ravel()])
    z = solve_ivp(field, (0.0, end), start, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return z[2:].reshape(2, 2)


def carlson(energy):
    """K(m) and B(m) = dK/dH with m = 1 - exp(-2H), from Carlson's symmetric integrals."""
    complement = np.exp(-2 * energy)
    first = special.elliprf(0.0, complement, 1.0)
    return first, first - special.elliprd(0.0, complement, 1.0) / 3


def euler(x, W, dt, steps):
    states = [x]
    for _ in range(steps):
        x = x + dt * np.tanh(x) @ W.T
        states.append(x)
    return np.array(states)


def random_skew(n, seed):
    A = np.random.default_rng(seed).normal(size=(n, n))
    W = A - A.T
    return W / np.linalg.norm(W, 2)


PAIR = np.array([[0.0, 1.0], [-1.0, 0.0]])


@pytest.mark.core
@pytest.mark.parametrize(
    "energy, expected, slope",
    [
        (0.5, 4.67263954107, 2.04800344),
        (1.0, 5.73329369783, 2.18440857),
        (2.0, 7.99371060505, 2.31140401),
        (5.0, 15.02671881642, 2.35268018),
    ],
)
def test_period_has_the_published_digits(energy, expected, slope):
    value, derivative = jax.value_and_grad(jd.period)(energy, 1.7)
    # Half a unit of the last digit given.
    assert abs(value - expected) <= 5.1e-12
    assert abs(derivative - slope) <= 5.1e-9


def test_period_and_its_derivative_at_every_energy():
    # 1 - m underflows at H = 500, where scipy's B = K - R_D/3 would lose digits besides.
    first, slope = carlson(np.minimum(ENERGIES, 50.0))
    first = first + np.maximum(ENERGIES - 50.0, 0.0)
    period = jd.period(ENERGIES, 1.7)
    reverse = jax.jit(jax.vmap(jax.grad(jd.period)))(jnp.asarray(ENERGIES))
    forward = jax.jit(jax.vmap(jax.jacfwd(jd.period)))(jnp.asarray(ENERGIES))
    # Measured 2e-16 and 2e-15, the latter from scipy's difference.
    np.testing.assert_allclose(period, 4 * first / 1.7, rtol=2e-15)
    np.testing.assert_allclose(reverse, 4 * slope, rtol=2e-14)
    np.testing.assert_allclose(forward, reverse, rtol=2e-15)
    # m -> 0 and m -> 1, from the expansions T = (2 pi/w)(1 + H/2) and (4/w)(H + 2 ln 2).
    assert float(period[0]) == pytest.approx(2 * np.pi / 1.7, rel=1e-15)
    assert float(reverse[0]) == pytest.approx(np.pi, rel=1e-15)
    assert float(reverse[2]) == pytest.approx(np.pi * (1 + 0.25e-8), rel=1e-12)
    np.testing.assert_allclose(period[-2:], 4 / 1.7 * (ENERGIES[-2:] + 2 * LN2), rtol=1e-15)
    np.testing.assert_allclose(reverse[-2:], 4.0, rtol=1e-15)
    by_frequency = jax.grad(jd.period, argnums=1)(2.0, 1.7)
    assert float(by_frequency) == pytest.approx(-float(jd.period(2.0, 1.7)) / 1.7, rel=1e-15)


def test_second_derivative_of_the_period():
    # Central differences of the first derivative: truncation 1e-8, rounding 1e-11.
    step = 1e-4
    second = jax.jit(jax.vmap(jax.grad(jax.grad(jd.period))))
    slope = jax.jit(jax.vmap(jax.grad(jd.period)))
    energy = jnp.array([0.01, 0.5, 2.0, 6.9, 8.0])
    difference = (slope(energy + step) - slope(energy - step)) / (2 * step)
    np.testing.assert_allclose(second(energy), difference, atol=1e-7)


def test_energy_of_period_inverts_period():
    # The absolute error is rounding of w T, about 4 K eps, over dK/dH >= pi/4.
    recovered = jd.energy_of_period(jd.period(ENERGIES, 1.7), 1.7)
    np.testing.assert_allclose(recovered, ENERGIES, rtol=4e-15, atol=4e-15)
    assert np.all(np.asarray(recovered) >= 0)
    inverse = jax.jit(jax.vmap(jax.grad(jd.energy_of_period)))(jd.period(ENERGIES))
    slope = jax.jit(jax.vmap(jax.grad(jd.period)))(jnp.asarray(ENERGIES))
    np.testing.assert_allclose(inverse * slope, 1.0, rtol=1e-14)


def test_orbit_is_made_of_jacobi_functions():
    energy, t = np.array([0.05, 0.3, 0.4, 1.0, 2.0])[:, None], np.linspace(-20.0, 20.0, 41)
    m = -np.expm1(-2 * energy)
    sn, cn, dn, _ = special.ellipj(1.7 * t, m)
    expected = np.stack([np.sqrt(m) * cn / dn, -np.sqrt(m) * sn], axis=-1)
    # The phase w t is rounded to 34 eps / 2, which artanh, at most 1/(1 - m) = 55 here, does not
    # see: tanh of the state is compared.
    np.testing.assert_allclose(np.tanh(jd.orbit(t, energy, 1.7)), expected, atol=3e-14)


@pytest.mark.parametrize("energy", [0.01, 0.34, 0.36, 2.0, 5.0])
def test_orbit_against_dop853_over_three_periods(energy):
    end = 3 * float(jd.period(energy, 1.7))
    times = np.linspace(0.0, end, 25)
    closed = np.asarray(jd.orbit(times, energy, 1.7))
    assert closed[0, 1] == 0 and closed[0, 0] == pytest.approx(
        np.arccosh(np.exp(energy)), rel=1e-14
    )
    # Measured 2e-14 to 1.2e-12: DOP853's own accumulated error.
    np.testing.assert_allclose(closed, pair_flow(times, closed[0], 1.7), atol=1e-11)
    np.testing.assert_allclose(closed[-1], closed[0], atol=1e-13)


def test_orbit_obeys_its_equation_at_every_energy():
    """dz/dt = f, H(z) = H, and so dH = grad H . dz/dH = 1: none of them is built in."""
    energy = jnp.asarray(ENERGIES[1:])[:, None] * jnp.ones((1, 33))
    t = jnp.linspace(-1.3, 1.3, 33)[None, :] * jd.period(energy, 1.7)
    one, zero = jnp.ones_like(t), jnp.zeros_like(t)

    @jax.jit
    def along(dt, denergy):
        return jax.jvp(lambda t, h: jd.orbit(t, h, 1.7), (t, energy), (dt, denergy))

    (z, by_time), (_, by_energy) = along(one, zero), along(zero, one)
    z = np.asarray(z)
    field = pair_field(z, 1.7)
    size = np.max(np.abs(field), axis=(1, 2), keepdims=True)
    # Measured 1.2e-15, 1.2e-14 and 1e-15.
    np.testing.assert_allclose(by_time / size, field / size, atol=1e-14)
    np.testing.assert_allclose(np.sum(np.tanh(z) * by_energy, axis=-1), 1.0, rtol=5e-14)
    low = np.asarray(energy[:, 0]) > 1e-4
    np.testing.assert_allclose(energy_of(z[low]), energy[low], rtol=1e-14, atol=1e-15)
    # H = |x|^2/2 up to a relative |x|^2/6.
    np.testing.assert_allclose(np.sum(z[~low] ** 2, axis=-1) / 2, energy[~low], rtol=1e-8)


def test_orbit_near_an_axis_keeps_its_relative_accuracy():
    # x2 = -k w t up to a relative (w t)^2.
    energy = np.array([1e-8, 0.3, 0.4, 5.0, 50.0])
    x2 = jd.orbit(1e-9, energy, 1.7)[..., 1]
    np.testing.assert_allclose(x2, -1.7e-9 * np.sqrt(-np.expm1(-2 * energy)), rtol=1e-15)


def test_large_energies_follow_straight_lines():
    # x1 = H + ln 2 - log cosh wt while x1 is large, and there log cosh wt = |wt| - ln 2; x2 = -wt.
    t = np.array([-100.0, 40.0, 100.0])
    expected = np.stack([500 + 2 * LN2 - np.abs(t), -t], axis=-1)
    np.testing.assert_allclose(jd.orbit(t, 500.0), expected, rtol=1e-15)


def test_orbit_at_rest():
    np.testing.assert_array_equal(jd.orbit(np.array([0.0, 3.0]), 0.0), 0.0)
    for jacobian in (jax.jacrev, jax.jacfwd):
        derivatives = jax.jit(jacobian(jd.orbit, argnums=(0, 1, 2)))(3.0, 0.0, 1.7)
        np.testing.assert_array_equal(derivatives, 0.0)


def test_harmonics_digits_and_fourier_transform():
    amplitudes = jd.harmonics(2.0, 1.7, k=4)
    given = [1.1615360953, 0.2098437358, 0.0481891735, 0.0111922087]
    np.testing.assert_allclose(amplitudes, given, atol=5.1e-11)
    # 256 samples over one period: aliases are of order q^128, nothing.
    for energy in (1e-6, 0.5, 2.0, 20.0):
        t = jnp.arange(256) / 256 * jd.period(energy, 1.7)
        spectrum = np.fft.rfft(np.tanh(jd.orbit(t, energy, 1.7)[:, 1])) / 128
        amplitudes = jd.harmonics(energy, 1.7, k=5)
        # At H = 20 the nome is .80 and the aliases q^128 = 4e-13.
        np.testing.assert_allclose(spectrum.imag[1:10:2], amplitudes, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(spectrum.real, 0.0, atol=1e-14)
    gradient = jax.jit(jax.vmap(jax.jacrev(lambda e: jd.harmonics(e, k=5))))(jnp.asarray(ENERGIES))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("x", [(0.3, -0.2), (1.5, 1.0), (3.0, -2.5)])
def test_monodromy_against_the_variational_equation(x):
    x = np.array(x)
    M = np.asarray(jd.monodromy(x, 1.7))
    measured = pair_variation(x, 1.7, float(jd.period(energy_of(x), 1.7)))
    # Measured up to 1.3e-12, DOP853's.
    np.testing.assert_allclose(M, measured, atol=2e-11)
    assert np.trace(M) == pytest.approx(2.0, abs=1e-14)
    # A Jordan block: M is not the identity, but (M - I)^2 = 0.
    assert np.max(np.abs(M - np.eye(2))) > 0.1
    np.testing.assert_allclose((M - np.eye(2)) @ (M - np.eye(2)), 0.0, atol=1e-13)


def test_monodromy_at_the_origin():
    np.testing.assert_array_equal(jd.monodromy(np.zeros(2)), np.eye(2))
    assert np.all(np.isfinite(jax.jit(jax.jacrev(jd.monodromy))(jnp.zeros(2))))


def test_shell_multiplier():
    value = float(jd.shell_multiplier(1.5, 0.2, 1.3))
    assert abs(value - 0.1025834765) <= 5.1e-11
    end, start = float(jd.period(1.5, 1.3)), np.asarray(jd.orbit(0.4, 1.5, 1.3))
    M = pair_variation(start, 1.3, end, rate=0.2, shell=1.5)
    # Measured 3e-15.
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(M).real), [value, 1.0], atol=1e-12)
    # K - E = (pi/4) m (1 + 3 m/8) at m = 2H -> 0; its own difference would keep 6 digits of it.
    assert float(jd.shell_multiplier(1e-10, 1e10)) == pytest.approx(np.exp(-4 * np.pi), rel=1e-8)
    assert float(jd.shell_multiplier(0.0, 0.2)) == 1.0
    slopes = jax.vmap(jax.grad(jd.shell_multiplier), (0, None))(jnp.asarray(ENERGIES), 0.01)
    assert np.all(np.isfinite(slopes))


def scipy_euler_law(t, energy, frequency, dt):
    def rate(_, H):
        m1 = np.exp(-2 * H)
        return dt * frequency**2 * (special.ellipe(1 - m1) / special.ellipkm1(m1) - m1)

    return solve_ivp(rate, (0.0, t), [energy], "DOP853", rtol=1e-13, atol=1e-15).y[0, -1]


@pytest.mark.core
def test_euler_energy_solves_the_averaged_law():
    t, energy = 300.0, np.array([0.01, 0.5, 2.0, 12.0])
    expected = [scipy_euler_law(t, h, 1.7, 0.02) for h in energy]
    # Promised 1e-11; measured 3e-14.
    np.testing.assert_allclose(jd.euler_energy(t, energy, 1.7, 0.02), expected, rtol=1e-11)


def test_euler_energy_limits():
    # Exponential, with a relative correction of order H; algebraic, of order exp(-2H).
    small = float(jd.euler_energy(20.0, 1e-9, 1.7, 0.05))
    assert small == pytest.approx(1e-9 * np.exp(0.05 * 1.7**2 * 20), rel=1e-7)
    large = float(jd.euler_energy(1e4, 20.0, 1.7, 0.2))
    root = np.sqrt((20 + 2 * LN2) ** 2 + 2 * 0.2 * 1.7**2 * 1e4)
    assert large == pytest.approx(root - 2 * LN2, rel=1e-11)
    assert float(jd.euler_energy(0.0, 0.7, 1.7, 0.2)) == pytest.approx(0.7, rel=1e-15)
    assert float(jd.euler_energy(1e5, 0.0, 1.7, 0.2)) == 0.0


def test_derivatives_of_the_euler_law():
    def law(energy):
        first, slope = carlson(energy)
        return -np.expm1(-2 * energy) * slope / first

    t, frequency, dt, energy = 20.0, 1.7, 0.05, 0.5
    arguments = (t, energy, frequency, dt)
    end = float(jd.euler_energy(*arguments))
    rate = dt * frequency**2 * law(end)
    expected = [rate, law(end) / law(energy), 2 * rate * t / frequency, rate * t / dt]
    reverse_mode = jax.jit(jax.grad(jd.euler_energy, argnums=(0, 1, 2, 3)))
    reverse = reverse_mode(*arguments)
    forward = jax.jit(jax.jacfwd(jd.euler_energy, argnums=(0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(reverse, expected, rtol=1e-10)
    np.testing.assert_allclose(forward, expected, rtol=1e-10)
    at_rest = reverse_mode(t, 0.0, frequency, dt)[1]
    assert float(at_rest) == pytest.approx(np.exp(dt * frequency**2 * t), rel=1e-10)


@pytest.mark.parametrize("energy, frequency", [(0.5, 1.7), (2.0, 1.0), (5.0, 1.0)])
def test_forward_euler_follows_the_averaged_law_to_first_order(energy, frequency):
    start = np.asarray(
        jd.orbit(np.arange(4) / 16 * jd.period(energy, frequency), energy, frequency)
    )
    worst = []
    for dt in (0.04, 0.02, 0.01):
        steps = round((frequency * dt) ** -2)
        measured = energy_of(euler(start, frequency * PAIR, dt, steps))
        # The law is smooth: a spline of it, from the same number of times at every dt.
        times = np.linspace(0.0, steps * dt, 41)
        law = CubicSpline(times, jd.euler_energy(times, energy, frequency, dt))
        worst.append(np.max(np.abs(measured / law(dt * np.arange(steps + 1))[:, None] - 1)))
    # Measured 3.5e-3 to 4.0e-3 at dt = .04, and ratios from 1.996 to 2.058.
    assert worst[0] < 6e-3
    np.testing.assert_allclose(np.array(worst[:-1]) / worst[1:], 2.0, atol=0.15)


@pytest.mark.parametrize("frequency, dt", [(1.0, 0.05), (1.7, 0.2)])
def test_forward_euler_creeps_like_a_square_root(frequency, dt):
    start = np.asarray(jd.orbit(np.arange(8) / 8 * jd.period(12.0, frequency), 12.0, frequency))
    measured = energy_of(euler(start, frequency * PAIR, dt, 40_000)).mean(axis=1)
    s = np.linspace(0.0, 1.0, measured.size)
    # The window keeps the oscillation along the orbit out of the slope. Measured 7e-8.
    slope = np.polyfit(s, (measured + 2 * LN2) ** 2, 1, w=(s * (1 - s)) ** 1.5)[0]
    assert slope == pytest.approx(2 * dt * frequency**2 * dt * 40_000, rel=1e-6)


def test_linear_euler_energy():
    W, x0, dt = random_skew(5, 0), np.random.default_rng(1).normal(size=5), 0.03
    steps = np.array([[0, 1, 7], [64, 1000, 100_000]])
    frequencies, vectors = np.linalg.eigh(-1j * W)
    parts = np.abs(vectors.conj().T @ x0) ** 2 / 2
    expected = [np.sum(parts * (1 + (dt * frequencies) ** 2) ** N) for N in steps.ravel()]
    # N units of rounding: 1e5 eps = 2.2e-11; measured 1.7e-11.
    energies = jd.euler_energy_linear(steps, W, x0, dt)
    np.testing.assert_allclose(energies, np.reshape(expected, steps.shape), rtol=5e-11)
    x = x0
    for _ in range(7):
        x = x + dt * W @ x
    assert float(jd.euler_energy_linear(7, W, x0, dt)) == pytest.approx(x @ x / 2, rel=1e-14)


def test_linear_euler_energy_differentiates_at_repeated_frequencies():
    W = np.kron(np.eye(2), 1.3 * PAIR)
    x0, dt, N = np.array([1.0, 2.0, -1.0, 0.5]), 0.1, 9
    by_matrix, by_state, by_step = jax.grad(
        lambda A, x, h: jd.euler_energy_linear(N, A - A.T, x, h), argnums=(0, 1, 2)
    )(jnp.asarray(W / 2), jnp.asarray(x0), dt)
    factor = 1 + (1.3 * dt) ** 2
    np.testing.assert_allclose(by_state, x0 * factor**N, rtol=1e-13)
    assert float(by_step) == pytest.approx(x0 @ x0 * N * factor ** (N - 1) * 1.69 * dt, rel=1e-13)
    assert np.all(np.isfinite(by_matrix))


def test_euler_max_step_is_a_bound():
    W, gain, t1 = 1.4 * random_skew(4, 3), 0.5, 5.0
    dt = float(jd.euler_max_step(gain, t1, 4, 1.4))
    assert dt == pytest.approx(2 * gain / (t1 * 4 * 1.4**2), rel=1e-15)
    steps = int(np.ceil(t1 / dt))
    x0 = np.random.default_rng(4).normal(size=(200, 4)) * np.array(
        [[0.3], [1.0], [4.0], [20.0]] * 50
    )
    per_step = np.diff(energy_of(euler(x0, W, dt, steps)), axis=0)
    # Forward Euler never loses energy, and no step gains more than the bound: which two large
    # decoupled pairs come within a factor 2 of on average, one step exactly.
    assert np.min(per_step) > -1e-13 and np.max(per_step) <= gain * dt / t1
    pairs = np.kron(np.eye(2), 1.4 * PAIR)
    jump = np.diff(energy_of(euler(np.array([[0.0, 9.0, 0.0, 9.0]]), pairs, dt, 1)), axis=0)
    assert 0.4 * gain * dt / t1 < jump.item() <= gain * dt / t1


def test_three_unit_frequency_is_the_jacobians():
    W = random_skew(3, 5)
    axis = np.array([-W[1, 2], W[0, 2], -W[0, 1]])
    l = np.array([-0.9, 0.0, 0.4, 0.97]) / np.max(np.abs(axis))
    frequencies = jd.equilibrium_frequency(W, l)
    for value, frequency in zip(l, frequencies, strict=True):
        np.testing.assert_allclose(W @ (value * axis), 0.0, atol=1e-15)
        eigenvalues = np.linalg.eigvals(W @ np.diag(1 - (value * axis) ** 2))
        assert np.max(eigenvalues.imag) == pytest.approx(float(frequency), rel=1e-13)
    by_matrix = jax.grad(jd.equilibrium_frequency)(jnp.zeros((3, 3)), 0.0)
    assert np.all(np.isfinite(by_matrix))


def measured_frequencies(W, x0, end=600.0, dt=0.2):
    """Mean angular velocity of each mode, by a weighted Birkhoff average (Das et al., 2017)."""
    n, times = len(W), np.arange(0.0, end, dt)

    def field(_, x):
        return (np.tanh(x.reshape(-1, n)) @ W.T).ravel()

    solution = solve_ivp(
        field, (0.0, times[-1]), x0.ravel(), "DOP853", times, rtol=1e-12, atol=1e-14
    )
    x = solution.y.T.reshape(times.size, -1, n)
    modes = np.linalg.eigh(-1j * W)[1][:, n - n // 2 :]
    turns = np.diff(np.unwrap(np.angle(x @ modes.conj()), axis=0), axis=0)
    u = (np.arange(len(turns)) + 0.5) / len(turns)
    weights = np.exp(-1 / (u * (1 - u)))
    return np.einsum("t,tbk->bk", weights / weights.sum(), turns) / dt


@pytest.mark.parametrize("n, seed", [(4, 4), (5, 6)])
def test_backbone_error_is_quadratic_in_the_energy(n, seed):
    W = random_skew(n, seed)
    direction = np.random.default_rng(seed).normal(size=n)
    x0 = np.array([[0.1], [0.2], [0.4]]) * direction / np.linalg.norm(direction)
    measured = measured_frequencies(W, x0)
    omega, shifted = jax.vmap(lambda x: jd.backbone(W, x))(jnp.asarray(x0))
    shift, error = np.abs(measured / omega - 1), np.abs(measured / shifted - 1)
    # Doubling the amplitude multiplies the shift by 4 and the error of the formula by 16.
    np.testing.assert_allclose(shift[1:] / shift[:-1], 4.0, rtol=0.06)
    np.testing.assert_allclose(error[1:] / error[:-1], 16.0, rtol=0.15)
    assert np.all(error[0] < 0.02 * shift[0])


def test_backbone_of_two_units_is_the_period():
    x0 = np.array([0.02, 0.01])
    (omega,), (shifted,) = jd.backbone(1.7 * PAIR, x0)
    assert float(omega) == pytest.approx(1.7, rel=1e-15)
    # 2 pi/T = w (1 - H/2 + O(H^2)), H = 2.5e-4.
    exact = 2 * np.pi / jd.period(energy_of(x0), 1.7)
    assert float(shifted) == pytest.approx(float(exact), rel=1e-7)


def test_backbone_is_differentiable():
    A, x0 = random_skew(5, 6) / 2, np.array([0.1, -0.2, 0.1, 0.3, 0.05])

    def shifted(A, x):
        return jd.backbone(A - A.T, x)[1]

    jacobian = jax.jit(jax.jacrev(shifted, argnums=(0, 1)))
    by_matrix, by_state = jacobian(jnp.asarray(A), jnp.asarray(x0))
    dA, dx, step = random_skew(5, 7) / 2, np.ones(5), 1e-5
    expected = (shifted(A + step * dA, x0 + step * dx) - shifted(A - step * dA, x0 - step * dx)) / (
        2 * step
    )
    total = jnp.einsum("kij,ij->k", by_matrix, dA) + by_state @ dx
    # Central differences: truncation 1e-10, rounding 1e-11.
    np.testing.assert_allclose(total, expected, rtol=1e-7)


def test_single_precision():
    f = jnp.float32
    W, x0, steps = random_skew(4, 4), np.array([0.1, 0.2, -0.1, 0.3]), np.array([1, 50])

    @jax.jit
    def everything(t, energy, W, x0):
        slope = jax.jvp(jd.period, (energy,), (jnp.ones_like(energy),))[1]
        return {
            "period": jd.period(energy, 1.7),
            "slope": slope,
            "orbit": jd.orbit(t, energy, 1.7),
            "harmonics": jd.harmonics(energy, k=3),
            "shell": jd.shell_multiplier(energy, 0.01),
            "euler": jd.euler_energy(4 * abs(t), energy, 1.7, 0.02),
            "linear": jd.euler_energy_linear(steps, W, x0, 0.1),
            "backbone": jd.backbone(W, x0)[1],
        }

    inputs = np.array([[0.3], [-7.0]]), ENERGIES, W, x0
    double = everything(*(jnp.asarray(v) for v in inputs))
    single = everything(*(jnp.asarray(v, f) for v in inputs))
    for name, value in single.items():
        assert value.dtype == f
        # The phase of 12 radians costs 12 eps = 1.4e-6, the averaged law 10 eps a step.
        np.testing.assert_allclose(value, double[name], rtol=2e-5, atol=3e-6, err_msg=name)
    energy = jnp.asarray(ENERGIES, f)
    tangents = jax.jit(jax.vmap(jax.jacfwd(jd.orbit, argnums=(0, 1)), (None, 0)))(f(0.3), energy)
    assert all(leaf.dtype == f and np.all(np.isfinite(leaf)) for leaf in tangents)


@pytest.mark.core
def test_under_jit_and_vmap():
    energy, t = jnp.array([0.1, 3.0]), jnp.array([0.2, 0.9])
    np.testing.assert_allclose(jax.jit(jd.orbit)(t, energy), jd.orbit(t, energy), rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(jd.orbit)(t, energy), jd.orbit(t, energy), rtol=1e-14)
    shapes = jd.orbit(t[:, None], energy).shape, jd.orbit(1, 2).shape, jd.period(2).shape
    assert shapes == ((2, 2, 2), (2,), ())


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: jd.period(-1.0), ValueError, "energy must be >= 0, got -1"),
        (lambda: jd.period(np.array([1.0, np.nan])), ValueError, "energy must be finite"),
        (lambda: jd.period(1.0, 0.0), ValueError, "frequency must be > 0"),
        (lambda: jd.period(1.0, np.inf), ValueError, "frequency must be finite"),
        (lambda: jd.period(1.0 + 1j), TypeError, "energy"),
        (lambda: jd.period("1"), TypeError, "energy"),
        (lambda: jd.period(None), TypeError, "energy"),
        (lambda: jd.energy_of_period(3.0, 2.0), ValueError, "period must be at least 2 pi"),
        (lambda: jd.orbit(np.inf, 1.0), ValueError, "t must be finite"),
        (lambda: jd.orbit(1.0, -0.1), ValueError, "energy must be >= 0"),
        (lambda: jd.harmonics(1.0, k=0), ValueError, "k must be"),
        (lambda: jd.monodromy(np.ones(3)), ValueError, r"x must have shape \(2,\), got \(3,\)"),
        (lambda: jd.monodromy(np.ones(2), np.ones(2)), ValueError, "frequency must be a scalar"),
        (lambda: jd.shell_multiplier(1.0, np.nan), ValueError, "rate must be finite"),
        (lambda: jd.euler_energy(-1.0, 1.0, 1.0, 0.1), ValueError, "t must be >= 0"),
        (lambda: jd.euler_energy(1.0, 1.0, 1.0, 0.0), ValueError, "dt must be > 0"),
        (lambda: jd.euler_energy_linear(-1, PAIR, np.ones(2), 0.1), ValueError, "n_steps"),
        (lambda: jd.euler_energy_linear(1.5, PAIR, np.ones(2), 0.1), TypeError, "n_steps"),
        (lambda: jd.euler_energy_linear(1, np.eye(2), np.ones(2), 0.1), ValueError, "skew-symm"),
        (lambda: jd.euler_energy_linear(1, PAIR, np.ones(3), 0.1), ValueError, "x0 must have"),
        (lambda: jd.euler_max_step(0.0, 1.0, 2, 1.0), ValueError, "energy_gain must be > 0"),
        (lambda: jd.euler_max_step(1.0, 1.0, 0, 1.0), ValueError, "n must be"),
        (lambda: jd.equilibrium_frequency(PAIR, 0.1), ValueError, r"W must have shape \(3, 3\)"),
        (lambda: jd.equilibrium_frequency(random_skew(3, 5), 5.0), ValueError, "l must lie within"),
        (lambda: jd.backbone(np.ones((2, 3)), np.ones(2)), ValueError, "W must be a square"),
        (lambda: jd.backbone(np.zeros((1, 1)), np.ones(1)), ValueError, "at least two units"),
        (
            lambda: jd.backbone(np.kron(np.eye(2), PAIR), np.ones(4)),
            ValueError,
            "distinct frequencies",
        ),
        (lambda: jd.backbone(PAIR, np.array([np.nan, 1.0])), ValueError, "x0 must be finite"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_traced_step_counts_are_refused():
    with pytest.raises(TypeError, match="n_steps must be known before tracing"):
        jax.jit(lambda N: jd.euler_energy_linear(N, PAIR, jnp.ones(2), 0.1))(3)
