"""Losses against NumPy's word on their formulas, and the run that they are made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd
from jaxdyn import losses as l
from jaxdyn import signals as s
from jaxdyn._train.rollout import Scaling, Settings, flow, least_squares_readout, run, windows

N, M, COUNT = 4, 2, 41
RNG = np.random.default_rng(0)
CELL = jd.PoissonCell(jd.DenseSkew.random(N, key=jr.key(0), scale=1.5), jd.Tanh())
X0 = jr.normal(jr.key(1), (N,))
C, D = RNG.standard_normal((M, N)), np.array([0.1, -0.2])
READOUT = jd.Readout(C, D)
MODEL = jd.Oscillator(X0, CELL, READOUT)
IRREGULAR = np.sort(RNG.uniform(0, 8, COUNT))
UNIFORM = 0.2 * np.arange(COUNT)
HALF = Settings(jd.Taylor(8), 2, False, 1e-12)
ALL = {
    "Trajectory": l.Trajectory(),
    "MultiHorizon": l.MultiHorizon((0.21, 0.72, 1.0)),
    "LogSpectral": l.LogSpectral(),
    "Frequency": l.Frequency((1.0, 1.4)),
    "Energy": l.Energy(),
    "Energy of 2": l.Energy(2.0),
    "Huber": l.Huber(delta=0.5),
}


def dop853(x0, ts, cell=CELL):
    field = jax.jit(lambda x: cell(0.0, x, None))
    out = solve_ivp(
        lambda t, x: np.asarray(field(x)),
        (ts[0], ts[-1]),
        np.asarray(x0),
        "DOP853",
        ts,
        rtol=1e-12,
        atol=1e-12,
    )
    return out.y.T


def window(ts=UNIFORM, values=None, weights=None, mask=None):
    """Random targets unless given; as they are, not standardised."""
    values = RNG.standard_normal((len(ts), M)) if values is None else values
    signal = s.Signal.of(np.asarray(values), ts=ts, mask=mask)
    (out,) = windows(signal, Scaling(np.zeros(M), np.ones(M)), [slice(None)], weights)
    return out


def seen(ts=UNIFORM, model=MODEL, settings=HALF, **options):
    return run(model, window(ts, **options), settings)


def of_itself(ts=UNIFORM, settings=HALF):
    """A run on targets that are the model's own outputs."""
    own = seen(ts, settings=settings)
    return seen(ts, values=own.readout.batch(own.states), settings=settings)


def valued(loss, run):
    return loss(run, loss.variables(run))


def test_states_are_those_of_the_flow():
    for ts in (UNIFORM, IRREGULAR):
        r = seen(ts, settings=Settings(jd.Taylor(16), 2, False, 1e-12))
        np.testing.assert_allclose(r.states, dop853(X0, r.times), rtol=0, atol=1e-9)


def test_window_weights_gaps_and_holes():
    ts = np.concatenate([UNIFORM[:20], UNIFORM[20:] + 3.05])
    mask = RNG.random((COUNT, M)) < 0.7
    weights = RNG.random((COUNT, M))
    filled = window(ts, weights=weights, mask=mask)
    # The hole of 3.25 is cut into pieces no longer than 1.5 steps.
    pieces = int(np.ceil(3.25 / 0.3))
    assert filled.gaps.shape == (COUNT - 1 + pieces - 1,) and float(jnp.max(filled.gaps)) <= 0.3
    np.testing.assert_allclose(filled.times[-1], ts[-1], atol=1e-12)
    at = np.searchsorted(np.asarray(filled.times), ts - 1e-9)
    np.testing.assert_allclose(filled.times[at], ts, atol=1e-12)
    np.testing.assert_allclose(filled.weights[at], weights * mask / np.sum(weights * mask))
    assert float(jnp.sum(filled.weights)) == pytest.approx(1)
    assert not np.any(np.delete(np.asarray(filled.weights), at, axis=0))


def test_scaling_standardises_what_was_measured():
    mask = RNG.random((COUNT, M)) < 0.7
    values = RNG.standard_normal((COUNT, M)) * [3.0, 0.01] + [5.0, -7.0]
    scaling = Scaling.of(s.Signal.of(values, dt=1.0, mask=mask))
    for c in range(M):
        assert scaling.mean[c] == pytest.approx(values[mask[:, c], c].mean(), rel=1e-12)
        assert scaling.scale[c] == pytest.approx(values[mask[:, c], c].std(), rel=1e-12)
    back = scaling.undo(scaling.apply(READOUT))
    np.testing.assert_allclose(back.matrix, C, rtol=1e-12)
    np.testing.assert_allclose(back.offset, D, rtol=1e-12)
    y = np.asarray(scaling.apply(READOUT)(X0)) * scaling.scale + scaling.mean
    np.testing.assert_allclose(y, READOUT(X0), rtol=1e-12)


@pytest.mark.parametrize("ts", [UNIFORM, IRREGULAR], ids=["uniform", "irregular"])
def test_trajectory(ts):
    weights = RNG.random((COUNT, M))
    r = seen(ts, weights=weights)
    outputs = dop853(X0, ts) @ C.T + D
    targets = np.asarray(r.targets)[np.any(np.asarray(r.weights) > 0, axis=1)]
    wanted = np.sum(weights * (outputs - targets) ** 2) / weights.sum()
    assert float(valued(l.Trajectory(), r)) == pytest.approx(wanted, rel=1e-6)


def test_multi_horizon():
    r = seen(weights=RNG.random((COUNT, M)))
    error, w = np.asarray(r.outputs - r.targets) ** 2, np.asarray(r.weights)
    parts = []
    for horizon in (0.21, 0.72, 1.0):
        inside = UNIFORM <= horizon * UNIFORM[-1]
        parts.append(np.sum((w * error)[inside]) / np.sum(w[inside]))
    assert float(valued(ALL["MultiHorizon"], r)) == pytest.approx(np.mean(parts), rel=1e-12)


@pytest.mark.parametrize("ts", [UNIFORM, IRREGULAR], ids=["uniform", "irregular"])
def test_multiple_shooting(ts):
    """41 samples in 4 segments: 11, 11, 11 and 8."""
    loss, r = l.MultipleShooting(4, 2.0), seen(ts)
    times, t = np.asarray(r.times), r.states.shape[0]
    length = -(-t // 4)
    starts = loss.variables(r)
    np.testing.assert_array_equal(starts, r.states[length::length])
    starts = np.asarray(starts) + 0.1 * RNG.standard_normal(starts.shape)
    states, ends = [], []
    for j, x in enumerate([X0, *starts]):
        inside = times[j * length : (j + 1) * length + 1]
        orbit = dop853(x, inside)
        states.append(orbit[:length])
        ends.append(orbit[-1])
    outputs = np.concatenate(states)[:t] @ C.T + D
    fitted = np.sum(np.asarray(r.weights) * (outputs - np.asarray(r.targets)) ** 2)
    jumps = np.mean((np.stack(ends[:-1]) - starts) ** 2)
    assert float(loss(r, jnp.asarray(starts))) == pytest.approx(fitted + 2.0 * jumps, rel=1e-6)


def test_multiple_shooting_is_zero_for_a_perfect_model_and_trains_its_starts():
    loss, r = l.MultipleShooting(4), of_itself()
    starts = loss.variables(r)
    assert float(loss(r, starts)) < 1e-20
    gradient = jax.grad(lambda v: loss(r, v))(starts + 0.1)
    assert gradient.shape == (3, N) and np.all(np.any(np.asarray(gradient) != 0, axis=1))


def test_log_spectral():
    r = seen()
    hann = np.sin(np.pi * (np.arange(COUNT) + 0.5) / COUNT)[:, None] ** 2
    wanted, found = (np.abs(np.fft.rfft(hann * y, axis=0)) ** 2 for y in (r.targets, r.outputs))
    floor = 1e-4 * wanted.max(0)
    value = np.mean(np.log((found + floor) / (wanted + floor)) ** 2)
    assert float(valued(l.LogSpectral(), r)) == pytest.approx(value, rel=1e-10)
    # What weighs nothing, before or after, is left out.
    for counted in (slice(0, 30), slice(9, None)):
        inside = np.zeros((COUNT, 1))
        inside[counted] = 1.0
        part = seen(values=r.targets, weights=inside * np.ones((1, M)))
        length = int(inside.sum())
        padded = np.zeros((COUNT, 1))
        padded[counted, 0] = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
        wanted, found = (
            np.abs(np.fft.rfft(padded * y, axis=0)) ** 2 for y in (r.targets, r.outputs)
        )
        floor = 1e-4 * wanted.max(0)
        value = np.mean(np.log((found + floor) / (wanted + floor)) ** 2)
        assert float(valued(l.LogSpectral(), part)) == pytest.approx(value, rel=1e-10)
    nothing = np.concatenate([np.zeros((COUNT, 1)), np.ones((COUNT, 1))], axis=1)
    assert np.isfinite(valued(l.LogSpectral(), seen(weights=nothing)))


def test_log_spectral_refuses_what_has_no_spectrum():
    uniform = s.tones([1.0], n_samples=50, dt=0.2)
    assert l.LogSpectral().prepared(uniform) is not None
    for signal in (s.tones([1.0], ts=IRREGULAR), uniform.drop(0.2, key=jr.key(0))):
        for loss in (l.LogSpectral(), l.Huber() + 2 * l.LogSpectral()):
            with pytest.raises(ValueError, match=r"`loss`: LogSpectral .* use Trajectory"):
                loss.prepared(signal)


@pytest.mark.parametrize("detuned", [0.01, -0.02])
def test_frequency_measures_detuning(detuned):
    """(w - w0) / w0, positive where the model is too fast."""
    w0 = 2.0
    w = w0 * (1 + detuned)
    pair = jd.DenseSkew.from_matrix(jnp.array([[0.0, w], [-w, 0.0]]))
    model = jd.Oscillator([1.0, 0.0], jd.PoissonCell(pair, jd.Identity()))
    r = seen(0.1 * np.arange(500), model=model)
    (residual,) = l.Frequency((w0,)).residuals(r, None)
    # The image at -w leaks by the Hann window's tails, 1e-5 at 16 periods a half.
    assert float(residual) == pytest.approx(detuned, rel=1e-2)
    two = l.Frequency((w0, 2 * w0)).residuals(r, None)
    assert float(two[0]) == pytest.approx(detuned / np.sqrt(2), rel=1e-2)


def test_frequency_takes_the_tones_of_the_signal():
    signal = s.tones([1.0, 2.3], channels=2, amplitude=[1.0, 0.5])
    np.testing.assert_allclose(l.Frequency(count=2).prepared(signal).omega, [1.0, 2.3])
    assert len(l.Frequency(count=1).prepared(signal).omega) == 1
    nested = (l.Trajectory() + 2.0 * (l.Huber() + l.Frequency(count=1))).prepared(signal)
    assert len(nested.terms[1].loss.terms[1].omega) == 1


def test_energy():
    r = seen()
    assert float(valued(l.Energy(), r)) < 1e-16
    start = float(CELL.energy(X0))
    assert float(valued(l.Energy(2.0), r)) == pytest.approx((start / 2 - 1) ** 2, rel=1e-6)
    damped = jd.PoissonCell(CELL.operator, jd.Tanh(), damping=0.1)
    r = seen(model=jd.Oscillator(X0, damped, READOUT))
    energies = np.sum(np.log(np.cosh(dop853(X0, UNIFORM, damped))), axis=1)
    wanted = np.mean((energies / start - 1) ** 2)
    assert float(valued(l.Energy(), r)) == pytest.approx(wanted, rel=1e-6)


def test_huber():
    weights = RNG.random((COUNT, M)) * (RNG.random((COUNT, M)) < 0.7)
    r, delta = seen(weights=weights), 0.5
    size = np.abs(np.asarray(r.outputs - r.targets))
    assert 0.2 < np.mean(size > delta) < 0.9
    rho = np.where(size <= delta, size**2, 2 * delta * size - delta**2)
    wanted = np.sum(weights * rho) / weights.sum()
    assert float(valued(l.Huber(delta), r)) == pytest.approx(wanted, rel=1e-12)


def test_huber_has_no_kink():
    """Value, slope of the residual and slope of the loss where the two laws meet."""
    huber, r = l.Huber(delta=0.3), seen()

    def off(error):
        """The run with targets that its outputs miss by so much."""
        return eqx.tree_at(lambda r: r.window.targets, r, r.outputs - error)

    def value(error):
        return huber.residuals(off(error), None)[0] / jnp.sqrt(r.weights[0, 0])

    for sign in (1.0, -1.0):
        edge = sign * 0.3
        below, above = jnp.asarray(edge * (1 - 1e-9)), jnp.asarray(edge * (1 + 1e-9))
        assert float(value(above)) == pytest.approx(float(value(below)), abs=1e-8)
        slopes = [float(jax.grad(value)(e)) for e in (below, above)]
        assert slopes == pytest.approx([1.0, 1.0], abs=1e-8)
    # Far out the loss grows by 2 delta for 1.
    slope = jax.grad(lambda e: huber(off(e)))(jnp.asarray(7.0))
    assert float(slope) == pytest.approx(0.6, rel=1e-12)


def test_losses_add_and_scale():
    r = seen()
    a, b = l.Trajectory(), l.MultipleShooting(3)
    both = a + 0.3 * b * 2.0
    variables = both.variables(r)
    assert variables[0] is None and variables[1].shape == (2, N)
    wanted = float(valued(a, r)) + 0.6 * float(valued(b, r))
    assert float(valued(both, r)) == pytest.approx(wanted, rel=1e-12)
    assert both.residuals(r, variables).ndim == 1
    assert float(valued(0 * a, r)) == 0
    with pytest.raises(TypeError):
        a + 1.0


@pytest.mark.parametrize("perfect", [False, True], ids=["wrong", "perfect"])
@pytest.mark.parametrize("project", [False, True], ids=["readout", "projected"])
def test_gradients_are_finite(perfect, project):
    """In a perfect fit every residual is 0, where a square root's slope would be infinite."""
    settings = Settings(jd.RK4(), 1, project, 1e-12)
    r = of_itself(settings=settings) if perfect else seen()

    def values(model, variables):
        own = run(eqx.combine(model, MODEL), r.window, settings)
        return {name: loss(own, variables[name]) for name, loss in ALL.items()}

    variables = {name: loss.variables(r) for name, loss in ALL.items()}
    model = eqx.filter(MODEL, eqx.is_inexact_array)
    slopes = jax.jit(jax.jacrev(values, argnums=(0, 1)))(model, variables)
    for name, slope in slopes.items():
        assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(slope)), name


def test_a_silent_model_has_finite_gradients():
    """Outputs of 0, whose phase and whose log spectrum say nothing."""

    def value(matrix, loss):
        return loss(seen(model=jd.Oscillator(X0, CELL, jd.Readout(matrix)), values=targets))

    targets = seen().targets
    for loss in (l.Frequency((1.0,)), l.LogSpectral()):
        zero = jnp.zeros((M, N))
        assert np.all(np.isfinite(jax.grad(value)(zero, loss)))


def test_the_derivative_of_the_flow():
    """Against that of the solver's own arithmetic: of order 4, and 1e-4 at the longest step of
    training, |W|_2 h = .3, after 6 radians of the fastest mode. Then its transpose."""
    direction = jax.tree.map(lambda a: jr.normal(jr.key(3), a.shape), (CELL, X0))
    gaps = jnp.full(20, 0.2)

    def plain(cell, x0):
        def step(x, dt):
            x = jd.Taylor(8).advance(cell, jnp.zeros(()), dt, x, None)
            return x, x

        return jnp.concatenate([x0[None], jax.lax.scan(step, x0, gaps)[1]])

    exact, truth = jax.jit(lambda *d: jax.jvp(plain, (CELL, X0), d))(*direction)
    errors = []
    for substeps in (1, 2, 4):
        ours = lambda *args, n=substeps: flow(*args, gaps, jd.Taylor(8), n)  # noqa: E731
        states, slope = jax.jvp(ours, (CELL, X0), direction)
        np.testing.assert_allclose(states, exact, rtol=0, atol=1e-7)
        errors.append(float(jnp.max(jnp.abs(slope - truth)) / jnp.max(jnp.abs(truth))))
    assert errors[0] < 1e-4
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.4)
    weights = jr.normal(jr.key(4), states.shape)
    gradient = jax.grad(lambda args: jnp.sum(weights * ours(*args)))((CELL, X0))
    products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
    assert float(sum(jax.tree.leaves(products))) == pytest.approx(
        float(jnp.sum(weights * slope)), rel=1e-10
    )


def test_least_squares_readout():
    """Each channel by NumPy, from its own samples: columns (x, 1), rows times sqrt(weight)."""
    states = RNG.standard_normal((60, N)) + np.array([0, 5, 0, -3])
    targets = RNG.standard_normal((60, M))
    weights = RNG.random((60, M)) * (RNG.random((60, M)) < 0.6)
    readout = least_squares_readout(*map(jnp.asarray, (states, targets, weights)), 1e-15)
    design = np.concatenate([states, np.ones((60, 1))], axis=1)
    for c in range(M):
        root = np.sqrt(weights[:, c])
        wanted = np.linalg.lstsq(design * root[:, None], targets[:, c] * root, rcond=None)[0]
        np.testing.assert_allclose(readout.matrix[c], wanted[:-1], atol=1e-10)
        np.testing.assert_allclose(readout.offset[c], wanted[-1], atol=1e-9)


def test_ridge_shrinks_the_readout():
    """min of sum(w (y - C x - d)^2) / sum(w) + ridge |C|^2 v, v the mean variance of the states."""
    states, targets = RNG.standard_normal((60, N)) * 7 + 2, RNG.standard_normal((60, M))
    w, ridge = RNG.random((60, 1)), 0.3
    weights, w = w * np.ones((1, M)) / (M * w.sum()), w / w.sum()
    readout = least_squares_readout(*map(jnp.asarray, (states, targets, weights)), ridge)
    centred = states - np.sum(w * states, axis=0)
    variance = np.mean(np.sum(w * centred**2, axis=0))
    gram = centred.T @ (w * centred) + ridge * variance * np.eye(N)
    mean = np.sum(w * targets, axis=0)
    wanted = np.linalg.solve(gram, centred.T @ (w * (targets - mean))).T
    np.testing.assert_allclose(readout.matrix, wanted, rtol=1e-9)
    offset = mean - wanted @ np.sum(w * states, axis=0)
    np.testing.assert_allclose(readout.offset, offset, rtol=1e-8, atol=1e-12)


def test_a_channel_that_is_not_measured_reads_zero():
    weights = np.ones((COUNT, M)) / COUNT
    weights[:, 1] = 0
    readout = least_squares_readout(
        seen().states, jnp.ones((COUNT, M)), jnp.asarray(weights), 1e-12
    )
    assert not np.any(readout.matrix[1]) and float(readout.offset[1]) == 0
    assert float(readout.offset[0]) == pytest.approx(1)


def test_projected_runs_have_the_best_readout():
    r = seen(settings=Settings(jd.Taylor(8), 1, True, 1e-13), weights=RNG.random((COUNT, M)))
    best = float(valued(l.Trajectory(), r))
    for key in jr.split(jr.key(5), 4):
        shift = 1e-3 * jr.normal(key, r.readout.matrix.shape)
        other = eqx.tree_at(lambda r: r.readout.matrix, r, r.readout.matrix + shift)
        assert float(valued(l.Trajectory(), other)) > best
