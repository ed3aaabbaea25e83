"""Vector fields that are no cells: Lorenz against another code, through every engine."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import jaxdyn as jd

X0 = jr.normal(jr.key(0), (5, 3))
ARGS = (10.0, 28.0, 8.0 / 3.0)
KERNEL = jd.Kernel(tile=4, interpret=True)


def lorenz(t, x, args):
    a, b, c = x
    sigma, rho, beta = args
    return jnp.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c])


def solve(fn=lorenz, x0=X0, args=ARGS, **how):
    return jd.simulate(fn, x0, args=args, **{"t1": 0.5, "dt": 0.0025, **how})


@pytest.fixture(scope="module")
def exact():
    def rate(t, x):
        a, b, c = x
        return 10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c

    ends = [solve_ivp(rate, (0, 0.5), x, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1] for x in X0]
    return np.stack(ends)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"solver": diffrax.Tsit5()},
        {"solver": diffrax.Tsit5(), "stepsize_controller": diffrax.PIDController(1e-9, 1e-9)},
        {"engine": KERNEL},
        {"engine": jd.Threads(2)},
        {"mesh": jax.make_mesh((1,), ("b",))},
    ],
    ids=["RK4", "Tsit5", "adaptive", "Kernel", "Threads", "mesh"],
)
def test_lorenz_is_that_of_another_code(how, exact):
    """RK4's error is 1e-6 here, by halving its step."""
    sol = solve(**how)
    assert sol.ys.shape == (5, 1, 3)
    np.testing.assert_allclose(sol.ys[:, 0], exact, rtol=0, atol=1e-5)


def test_one_state_and_saved_functions(exact):
    saveat = diffrax.SaveAt(t1=True, fn=lambda t, x, args: (t, x[0], args[1]))
    t, first, rho = solve(x0=X0[2], saveat=saveat).ys
    assert t.shape == (1,) and float(t[0]) == 0.5 and float(rho[0]) == 28.0
    np.testing.assert_allclose(first[0], exact[2, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", [None, KERNEL])
def test_parameters_of_their_own_and_gradients(engine):
    """By vmap; by what is given, what is closed over and what a module holds."""
    how = {"t1": None, "n_steps": 40, "engine": engine}
    rho = jnp.linspace(10.0, 28.0, 5)
    ys = jax.vmap(lambda x, r: solve(x0=x, args=(10.0, r, ARGS[2]), **how).ys)(X0, rho)
    alone = solve(x0=X0[3], args=(10.0, float(rho[3]), ARGS[2]), t1=None, n_steps=40).ys
    np.testing.assert_allclose(ys[3], alone, rtol=0, atol=1e-12)

    class Lorenz(eqx.Module):
        rho: jax.Array

        def __call__(self, t, x, args):
            return lorenz(t, x, (10.0, self.rho, ARGS[2]))

    def given(r):
        return jnp.sum(solve(args=(10.0, r, ARGS[2]), **how).ys)

    def closed_over(r):
        return jnp.sum(solve(lambda t, x, _: lorenz(t, x, (10.0, r, ARGS[2])), args=None, **how).ys)

    def held(r):
        return jnp.sum(solve(Lorenz(r), args=None, **how).ys)

    h, at = 1e-5, jnp.asarray(28.0)
    want = (given(at + h) - given(at - h)) / (2 * h)
    for loss in (given, closed_over, held):
        np.testing.assert_allclose(jax.grad(loss)(at), want, rtol=1e-7)


def test_precision_is_that_of_the_states():
    """Floats of `args` too; integers and the rest stay what they are."""
    seen = []

    def fn(t, x, args):
        seen.append((t.dtype, x.dtype, args["rho"].dtype, args["power"]))
        return lorenz(t, x, (10.0, args["rho"], 8 / 3)) * x[0] ** (args["power"] - 2)

    ys = solve(fn, X0.astype(jnp.float32), {"rho": jnp.asarray(28.0), "power": 2}).ys
    assert ys.dtype == jnp.float32
    single = np.dtype(np.float32)
    assert set(seen) == {(single, single, single, 2)}


def test_numpy_arrays_and_what_else_args_may_hold():
    class Table:
        __hash__ = None

    args = {"rate": np.ones(3), "names": ("a", "b"), "power": 2}
    ys = solve(lambda t, x, a: -((a["rate"] * x) ** a["power"]), X0, args, t1=0.01).ys
    want = solve(lambda t, x, a: -(x**2), X0, None, t1=0.01).ys
    np.testing.assert_allclose(ys, want, rtol=1e-14)
    with pytest.raises(TypeError, match=r"`args` may hold .* got a Table; make it an eqx.Module"):
        solve(args=Table())
    with pytest.raises(ValueError, match=r"got shape \(5, 3\); `args` are the same for all"):
        solve(lambda t, x, a: a * x[None], args=X0)


def test_another_number_is_no_other_program():
    calls = []

    def fn(t, x, args):
        calls.append(0)
        return -args * x

    def made(rate):
        before = len(calls)
        solve(fn, args=rate)
        return len(calls) - before

    assert made(1.0) > made(2.0) == made(3.0) == 1  # one look at its shape


def test_failures_stand_with_their_trajectory():
    x0 = jnp.zeros((3, 2)).at[1].set(1.0)
    sol = solve(lambda t, x, args: x**3 * 1e3, x0, None, t1=2.0, dt=0.1, throw=False)
    assert jnp.array_equal(sol.result == diffrax.RESULTS.successful, jnp.array([True, False, True]))
