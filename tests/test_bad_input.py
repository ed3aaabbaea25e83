"""Bad input: every public name refuses it, names the argument and says what to give instead.

Users do not have the annotation checks of conftest.py, which would refuse some of this before the
package does. So all cases run once in a process of its own that imports jaxdyn plainly, with 64-bit
types on and JAX's default promotion; pytest goes through what it reports.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from diffrax import PIDController, SaveAt

import jaxdyn as jd

# One process serves all cases: keep them on one worker.
pytestmark = pytest.mark.xdist_group("bad_input")

T, V, R = "TypeError", "ValueError", "RuntimeError"
NAN, INF = float("nan"), float("inf")
KEY = jr.key(0)
W = jd.DenseSkew.random(3, key=KEY)
X = jnp.array([0.5, 0.2, -0.3])
XS = jnp.stack([X, 0 * X])
INTEGERS = np.array([1, 0, 2])
U = jnp.ones((3, 2))
CELL, LINEAR = jd.PoissonCell(W, jd.Tanh()), jd.PoissonCell(W, jd.Identity())
DRIVEN = jd.PoissonCell(W, jd.Tanh(), input_matrix=U)
DRIVEN_LINEAR = jd.PoissonCell(W, jd.Identity(), input_matrix=U)
ANTISYMMETRIC = jd.AntisymmetricCell(W, jd.Tanh())
ATTRACT, SMALL = jd.EnergyShell(1.0, 0.1), jd.EnergyShell(1.0, 0.1, keep=jnp.eye(2))
SHELL = jd.PoissonCell(W, jd.Tanh(), regulator=ATTRACT)
DAMPED = jd.PoissonCell(W, jd.Arctan(), damping=0.1)
INSIDE = jd.AntisymmetricCell(W, jd.Tanh(), damping=0.1)
CONTROLLER = PIDController(rtol=1e-3, atol=1e-3)
NANS = X * NAN
EVENT = diffrax.Event(lambda t, x, args, **_: x[0])
VECTOR_EVENT = diffrax.Event(lambda t, x, args, **_: x)
BACKSOLVE, STEP_TO = diffrax.BacksolveAdjoint(), diffrax.StepTo(ts=jnp.array([0.0, 1.0]))
TSIT5, HALVED, TAYLOR = diffrax.Tsit5(), diffrax.HalfSolver(jd.Strang()), jd.Taylor(4)
# Three channels, where DRIVEN has two; and a state for each of four times.
PATH = diffrax.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.ones((2, 3)))
SHORT_PATH = diffrax.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.ones((2, 2)))
YS = jnp.stack([X] * 4)
UNDO = jd.ReversibleAdjoint()
NOISE = diffrax.VirtualBrownianTree(0.0, 1.0, tol=1e-2, shape=(2,), key=KEY)


def field(t, x, args):
    return -x


class Case(NamedTuple):
    """A call that must raise `error` with a message that matches `argument` and `cure`.

    Without an error, a call on the border of what is allowed, which must return True.
    """

    subject: str
    what: str
    call: Callable[[], Any]
    error: str = ""
    argument: str = ""
    cure: str = ""

    @property
    def id(self) -> str:
        return f"{self.subject}: {self.what}"


def sim(cell=CELL, x0=X, dt=0.1, **options):
    if "n_steps" not in options:
        options = {"t1": 1.0, **options}
    return jd.simulate(cell, x0, dt=dt, **options)


def control(controller, **options):
    return sim(stepsize_controller=controller, **options)


def saves(adjoint=None, **options):
    return sim(saveat=SaveAt(**options), adjoint=adjoint)


def traced(call):
    """`call` of a traced number."""
    return jax.jit(call)(1)


def poisson(activation=None, **options):
    return jd.PoissonCell(W, jd.Tanh() if activation is None else activation, **options)


def plain(solver, field=lambda t, y, args: -y, y0=X, **options):
    """A solver of ours in diffrax itself."""
    return diffrax.diffeqsolve(diffrax.ODETerm(field), solver, 0.0, 1.0, 0.1, y0, **options)


def backsolve(x):
    return plain(jd.Strang(), CELL, x, adjoint=BACKSOLVE).ys.sum()


def diverge(cell, solver, dt, **options):
    """300 steps far beyond stability; the second trajectory is at rest and stays there."""
    return sim(cell, XS, dt, n_steps=300, solver=solver, **options)


def fails_alone(cell, solver, dt, **options):
    """Without `throw`, the result says of each trajectory whether it failed."""
    result = diverge(cell, solver, dt, throw=False, **options).result
    good = result == diffrax.RESULTS.successful
    return good.tolist() == [False, True]


def stays(x0, t1=2.0, t0=2.0, **options):
    """Whether a solve of no length returns x0, bit by bit."""
    sol = sim(x0=x0, t0=t0, t1=t1, **options)
    same = np.array_equal(sol.ys, np.broadcast_to(jnp.expand_dims(x0, -2), sol.ys.shape))
    return bool(
        same and jnp.all(sol.ts == t0) and jnp.all(sol.result == diffrax.RESULTS.successful)
    )


def without_x64():
    """Integers become the default float type, which is float32 now."""
    with jax.enable_x64(False):
        cell = jd.PoissonCell(jd.DenseSkew.random(3, key=KEY), jd.Tanh())
        return sim(cell, INTEGERS).ys.dtype == jnp.float32


def float64_without_x64():
    with jax.enable_x64(False):
        return jd.DenseSkew.random(3, key=KEY, dtype=jnp.float64)


def drift(fn):
    """The drift of something else than states."""
    return jd.energy_drift(CELL, X, saves(t1=True, fn=lambda t, x, args: fn(x)))


def exact_linear(args, **options):
    return sim(DRIVEN_LINEAR, args=args, solver=jd.ExactLinear(), **options)


def shell(**options):
    """A solver that can be run backwards and serves the shell."""
    return sim(SHELL, solver=TAYLOR, **options)


def adaptive(**options):
    return control(CONTROLLER, solver=TAYLOR, **options)


def traced_save(adjoint):
    return jax.jit(lambda t: saves(ts=t[None], adjoint=adjoint).ys)(0.5)


def lossy(adjoint):
    """A gradient that allows no rounding."""
    gradient = jax.grad(lambda x: sim(x0=x, n_steps=100, adjoint=adjoint).ys.sum())
    return jax.block_until_ready(gradient(X))


def interval(cell=CELL, x0=X, **options):
    return jd.reversal_interval(cell, x0, **{"dt": 0.1, "n_steps": 10, "error": 1e-6, **options})


def gridded(splitting, cell):
    return sim(cell, solver=splitting(grid=2.0**-36))


def discrete_gradient():
    return sim(INSIDE, solver=jd.DiscreteGradient())


def euler_steps(n_steps):
    return jd.euler_energy_linear(n_steps, W, X, 0.1)


def antisymmetric_defect():
    return jd.poisson_defect(jd.Strang(), ANTISYMMETRIC, X, 0.1)


def halves():
    """A wrapped solver goes on from two half steps: to rounding, a solve with half the step."""
    return np.allclose(sim(solver=HALVED).ys, sim(dt=0.05).ys, rtol=0, atol=1e-14)


def drift_of_stored_steps():
    """Steps that an adaptive solve did not need are infinite in its buffer."""
    stored = control(CONTROLLER, solver=TAYLOR, saveat=SaveAt(steps=True), max_steps=64)
    return bool(jd.energy_drift(CELL, X, stored) < 1e-2)


def hidden_failure():
    """What is saved is finite, and the state is not."""
    saveat = SaveAt(t1=True, fn=lambda t, x, args: jnp.nan_to_num(x))
    return fails_alone(LINEAR, diffrax.Euler(), 1e3, saveat=saveat)


def drift_of_negative_energy():
    """On one side the energy of a softplus cell is negative; its size counts, about 1 here."""
    return bool(jd.energy_drift(poisson(jd.Softplus()), -jnp.abs(X), YS - 2 * X) < 10)


STATE = "[Uu]se jax.vmap"
SIMULATE = [
    ("x0 None", lambda: sim(x0=None), T, "`x0`", r"real numbers of shape \(3,\)"),
    ("x0 a string", lambda: sim(x0="abc"), T, "`x0`", r"real numbers of shape \(3,\)"),
    ("x0 ragged", lambda: sim(x0=[[1, 2, 3], [1, 2]]), T, "`x0`", "real numbers of shape"),
    ("x0 a dict", lambda: sim(x0={"x": X}), T, "`x0`", "real numbers of shape"),
    ("x0 complex", lambda: sim(x0=X + 1j), T, "`x0`", "pass x0.real"),
    ("x0 boolean", lambda: sim(x0=X > 0), T, "`x0`", "real numbers such as floats"),
    ("x0 float16", lambda: sim(x0=X.astype(jnp.float16)), T, "`x0`", "float32 or float64"),
    ("x0 a huge integer", lambda: sim(x0=[10**30, 0, 2]), T, "`x0`", "real numbers of shape"),
    ("x0 a random key", lambda: sim(x0=jr.split(KEY, 3)), T, "`x0`", "real numbers"),
    ("x0 too short", lambda: sim(x0=X[:2]), V, "`x0`", r"shape \(3,\) or \(b, 3\)"),
    ("x0 three axes", lambda: sim(x0=XS[None]), V, "`x0`", r"shape \(3,\) or \(b, 3\)"),
    ("x0 a number", lambda: sim(x0=1.0), V, "`x0`", r"shape \(3,\) or \(b, 3\)"),
    ("x0 no units", lambda: sim(x0=jnp.zeros((2, 0))), V, "`x0`", r"shape \(3,\) or \(b, 3\)"),
    ("x0 empty batch", lambda: sim(x0=XS[:0]), V, "`x0`.*empty batch", "at least one"),
    ("x0 NaN", lambda: sim(x0=X * NAN), V, "`x0`", "must be finite"),
    ("x0 infinite", lambda: sim(x0=XS + INF), V, "`x0`", "must be finite"),
    ("x0 NaN in jit", lambda: traced(lambda h: sim(x0=NANS, dt=h)), V, "`x0`", "finite"),
    ("cell None", lambda: sim(None), T, "`cell`", "PoissonCell or jaxdyn.Antisymm"),
    ("cell a class", lambda: sim(jd.PoissonCell), T, "`cell`", "object, not the class"),
    ("cell an operator", lambda: sim(W), T, "`cell`", "a jaxdyn.PoissonCell"),
    ("cell a function", lambda: sim(jnp.tanh), T, "`cell`", "a jaxdyn.PoissonCell"),
    ("cell of two", lambda: sim(lambda t, x: x), T, "`cell`", r"a function f\(t, x, args\)"),
    ("rate short", lambda: sim(lambda t, x, _: x[1:]), V, "`cell`.*one real array of", "jnp.stack"),
    ("rate a tuple", lambda: sim(lambda t, x, _: (x, x)), V, "`cell`.*got tuple", "jnp.stack"),
    ("rate a bool", lambda: sim(lambda t, x, _: x > 0), T, "`cell`.*dtype bool", "real array"),
    ("field, Strang", lambda: sim(field, solver=jd.Strang()), V, "`solver`", "jaxdyn.RK4"),
    ("field, undone", lambda: sim(field, adjoint=UNDO), V, "`adjoint", "leave `adjoint` out"),
    ("field, no state", lambda: sim(field, []), V, "`x0`.*empty", "at least one"),
    ("dt left out", lambda: jd.simulate(CELL, X, t1=1.0), T, "'dt'", "required keyword"),
    ("dt zero", lambda: sim(dt=0), V, "`dt`", "> 0"),
    ("dt negative", lambda: sim(dt=-0.1), V, "`dt`", "> 0.*take t1 < t0"),
    ("dt NaN", lambda: sim(dt=NAN), V, "`dt`", "finite number > 0"),
    ("dt infinite", lambda: sim(dt=INF), V, "`dt`", "finite number > 0"),
    ("dt a string", lambda: sim(dt="0.1"), T, "`dt`", "finite number > 0"),
    ("dt None", lambda: sim(dt=None), T, "`dt`", "finite number > 0"),
    ("dt complex", lambda: sim(dt=jnp.asarray(1j)), T, "`dt`", "finite number > 0"),
    ("dt boolean", lambda: sim(dt=np.asarray(True)), T, "`dt`", "finite number > 0"),
    ("dt a vector", lambda: sim(dt=np.array([0.1])), T, "`dt`", "finite number > 0"),
    ("dt for 1e300 steps", lambda: sim(dt=1e-300), V, "`dt`", "take a larger `dt`"),
    ("dt 0 in float32", lambda: sim(x0=X.astype("f4"), dt=1e-46), V, "`dt`", "take a larger"),
    ("dt traced with t1", lambda: traced(lambda h: sim(dt=h)), V, "`dt`", "pass `n_steps`"),
    ("dt traced, complex", lambda: traced(lambda h: sim(dt=h * 1j)), T, "`dt`", "finite number"),
    ("t1 infinite", lambda: sim(t1=INF), V, "`t1`", "finite number"),
    ("t1 NaN", lambda: sim(t1=NAN), V, "`t1`", "finite number"),
    ("t1 a string", lambda: sim(t1="1"), T, "`t1`", "finite number"),
    ("t1 a list", lambda: sim(t1=[1.0, 2.0]), T, "`t1`", "finite number"),
    ("t1 traced", lambda: traced(lambda t: sim(t1=t)), V, "`t1`", "pass `n_steps`"),
    ("t1 infinite in float32", lambda: sim(x0=X.astype("f4"), t1=1e39, dt=1e38), V, "`t1`", "take"),
    ("t0 infinite", lambda: sim(t0=-INF), V, "`t0`", "finite number"),
    ("t0 None", lambda: sim(t0=None), T, "`t0`", "finite number"),
    ("neither end", lambda: sim(t1=None), V, "`t1`", "exactly one of.*`n_steps`, got neither"),
    ("both ends", lambda: sim(t1=1.0, n_steps=3), V, "`t1`", "exactly one of.*got both"),
    ("n_steps negative", lambda: sim(n_steps=-1), V, "`n_steps`", "integer >= 0"),
    ("n_steps a float", lambda: sim(n_steps=3.0), V, "`n_steps`", "Python integer >= 0"),
    ("n_steps a boolean", lambda: sim(n_steps=True), V, "`n_steps`", "Python integer >= 0"),
    ("n_steps a string", lambda: sim(n_steps="3"), V, "`n_steps`", "Python integer >= 0"),
    ("n_steps huge", lambda: sim(n_steps=10**30), V, "`n_steps`", "take fewer"),
    ("n_steps traced", lambda: traced(lambda n: sim(n_steps=n)), V, "`n_steps`", "before tracing"),
    ("solver a string", lambda: sim(solver="strang"), T, "`solver`", r"such as jaxdyn.Strang\(\)"),
    ("solver a class", lambda: sim(solver=jd.Strang), T, "`solver`", "object, not the class"),
    ("solver of split terms", lambda: sim(solver=diffrax.KenCarp4()), V, "`solver`", "use jaxdyn"),
    ("solver of noise", lambda: sim(solver=diffrax.SPaRK()), V, "`solver`", "use jaxdyn"),
    ("adjoint a string", lambda: sim(adjoint="direct"), T, "`adjoint`", "or a diffrax adjoint"),
    ("adjoint a class", lambda: sim(adjoint=type(BACKSOLVE)), T, "`adjoint`", "not the class"),
    ("adjoint Backsolve", lambda: sim(adjoint=BACKSOLVE), V, "`adjoint=", r"jaxdyn.RK4\(\)"),
    ("controller a string", lambda: control("pid"), T, "`stepsize_controller`", "PIDController"),
    ("controller a class", lambda: control(PIDController), T, "`stepsize_", "not the class"),
    ("controller of errors", lambda: control(CONTROLLER), V, "`stepsize_.*Strang", "jaxdyn.Taylor"),
    ("controller of steps", lambda: control(STEP_TO), V, "`stepsize_controller", "diffeqsolve"),
    ("event a function", lambda: sim(event=lambda t, x, a: x[0]), T, "`event`", "diffrax.Event"),
    ("event of a string", lambda: sim(event=diffrax.Event("x")), T, "event.cond_fn", "function of"),
    ("event of a vector", lambda: sim(event=VECTOR_EVENT), V, "Event functions", "a scalar"),
    ("max_steps zero", lambda: sim(max_steps=0), V, "`max_steps`", "positive integer"),
    ("max_steps a float", lambda: sim(max_steps=1.5), V, "`max_steps`", "positive integer"),
    ("max_steps too few", lambda: sim(max_steps=3), R, "`max_steps`", "increasing `max_steps`"),
    ("progress a string", lambda: sim(progress="no"), T, "`progress`", "True or False"),
    ("throw None", lambda: sim(throw=None), T, "`throw`", "True or False"),
    ("saveat a list", lambda: sim(saveat=[0.1, 0.2]), T, "`saveat`", "diffrax.SaveAt"),
    ("saveat a class", lambda: sim(saveat=SaveAt), T, "`saveat`", "object, not the class"),
    ("saveat of nothing", saves, V, "`saveat`", "give t0, t1, ts, steps or dense"),
    ("saveat outside", lambda: saves(ts=[0.1, 2.0]), V, "`saveat.ts`", "between t0 = 0.0 and t1"),
    ("saveat before", lambda: saves(ts=[-0.1, 0.2]), V, "`saveat.ts`", "between t0 = 0.0 and t1"),
    ("saveat unsorted", lambda: saves(ts=[0.5, 0.2]), V, "`saveat.ts`", "sort it"),
    ("saveat NaN", lambda: saves(ts=[0.5, NAN]), V, "`saveat.ts`", "must be finite"),
    ("saveat complex", lambda: saves(ts=jnp.array([0, 1j])), T, "`saveat.ts`", "real numbers"),
    ("saveat a matrix", lambda: saves(ts=jnp.ones((2, 2))), V, "`saveat.ts`", r"shape \(t,\)"),
    ("saveat negative steps", lambda: saves(steps=-1), V, "`saveat.steps`", ">= 0"),
    ("saveat too rare", lambda: saves(steps=20), V, "`saveat.steps`", "add t1=True"),
    ("saveat fn a string", lambda: saves(t1=True, fn="x"), T, "`saveat.fn`", "a function of"),
]
ARGS = [
    ("missing", lambda: sim(DRIVEN), V, "pass the input u as args="),
    ("missing, batch", lambda: sim(DRIVEN, XS), V, "pass the input u as args="),
    ("of wrong shape", lambda: sim(DRIVEN, args=jnp.ones(3)), V, r"shape \(2,\)"),
    ("of wrong batch", lambda: sim(DRIVEN, XS, args=jnp.ones((3, 2))), V, r"\(2,\), shared"),
    ("a string", lambda: sim(DRIVEN, args="u"), T, "a real number or an array of them"),
    ("a string, batch", lambda: sim(DRIVEN, XS, args="u"), T, "real number or an array of them"),
    ("a dict", lambda: sim(DRIVEN, args={"u": 1.0}), T, "a real number or an array of them"),
    ("unneeded", lambda: sim(args=jnp.ones(2)), V, "build it with input_matrix=U"),
    ("NaN", lambda: sim(DRIVEN, args=jnp.array([1.0, NAN])), V, "must be finite"),
    ("complex", lambda: sim(DRIVEN, args=jnp.ones(2) * 1j), T, "a real number or an array"),
    ("complex in time", lambda: sim(DRIVEN, args=lambda t: jnp.ones(2) * 1j), T, "must be real"),
    ("a path of 3 channels", lambda: sim(DRIVEN, args=PATH), V, r"shape \(2,\)"),
    ("a path of 3, batch", lambda: sim(DRIVEN, XS, args=PATH), V, r"\(2, 2\), one row per"),
    ("a class", lambda: sim(DRIVEN, args=type(PATH)), T, r"a callable u\(t\)"),
    ("of two arguments", lambda: sim(DRIVEN, args=lambda t, x: U[0]), T, r"a callable u\(t\)"),
    ("of two, batch", lambda: sim(DRIVEN, XS, args=lambda t, x: U[0]), V, r"evaluate to \(2,\)"),
    ("that return None", lambda: sim(DRIVEN, args=lambda t: None), T, "that returns one"),
    ("NaN in time", lambda: sim(DRIVEN, args=lambda t: U[0] * NAN), R, "Take a smaller `dt`"),
]
MAKE = [
    ("operator None", lambda c: c(None, jd.Tanh()), T, "`operator`", "such as jaxdyn.DenseSkew"),
    ("operator a matrix", lambda c: c(W.as_matrix(), jd.Tanh()), T, "`operator`", "from_matrix"),
    ("operator a class", lambda c: c(jd.DenseSkew, jd.Tanh()), T, "`operator`", "DenseSkew.random"),
    ("activation a class", lambda c: c(W, jd.Tanh), T, "`activation`", r"jaxdyn.Tanh\(\)"),
    ("activation a string", lambda c: c(W, "tanh"), T, "`activation`", r"jaxdyn.Tanh\(\)"),
    ("activation a function", lambda c: c(W, jnp.tanh), T, "`activation`", "FunctionActivation"),
    ("bias too short", lambda c: c(W, jd.Tanh(), bias=X[:2]), V, "`bias`", r"shape \(3,\)"),
    ("bias a string", lambda c: c(W, jd.Tanh(), bias="b"), T, "`bias`", "real number or an array"),
    ("bias ragged", lambda c: c(W, jd.Tanh(), bias=[[1], [2, 3]]), T, "`bias`", "real number"),
    ("bias NaN", lambda c: c(W, jd.Tanh(), bias=X * NAN), V, "`bias`", "must be finite"),
    ("bias complex", lambda c: c(W, jd.Tanh(), bias=X * 1j), T, "`bias`", "a real number"),
    ("input_matrix", lambda c: c(W, jd.Tanh(), input_matrix=X), V, "`input_matrix`", r"\(3, m\)"),
    ("damping", lambda c: c(W, jd.Tanh(), damping=X[:2]), V, "`damping`", r"\(\) or \(3,\)"),
    ("damping infinite", lambda c: c(W, jd.Tanh(), damping=INF), V, "`damping`", "finite"),
    ("x too short", lambda c: c(W, jd.Tanh())(0.0, X[:2], None), V, "`[xy]`", STATE),
    ("x a batch", lambda c: c(W, jd.Tanh())(0.0, XS, None), V, "`[xy]`", STATE),
    ("x None", lambda c: c(W, jd.Tanh())(0.0, None, None), T, "`[xy]`", "real numbers of shape"),
    ("x integer", lambda c: c(W, jd.Tanh())(0.0, INTEGERS, None), T, "`[xy]`", r"asarray\([xy]"),
    ("x complex", lambda c: c(W, jd.Tanh())(0.0, X + 1j, None), T, "`[xy]`", "must be real"),
    ("energy of a batch", lambda c: c(W, jd.Tanh()).energy(XS), V, "`[xy]`", STATE),
    ("energy too short", lambda c: c(W, jd.Tanh()).energy(X[:2]), V, "`[xy]`", STATE),
    ("casimirs of a batch", lambda c: c(W, jd.Tanh()).casimirs(XS), V, "`[xy]`", STATE),
    ("rate of a batch", lambda c: c(W, jd.Tanh()).energy_rate(0.0, XS, None), V, "`[xy]`", STATE),
]
SHELLS = [
    ("energy None", lambda: jd.EnergyShell(None, 1.0), T, "`energy`", "real number"),
    ("energy a string", lambda: jd.EnergyShell("1", 1.0), T, "`energy`", "real number"),
    ("energy a vector", lambda: jd.EnergyShell(X, 1.0), V, "`energy`", "a scalar"),
    ("energy NaN", lambda: jd.EnergyShell(NAN, 1.0), V, "`energy`", "must be finite"),
    ("energy negative", lambda: jd.EnergyShell(-1.0, 1.0), V, "`energy`", ">= 0.*damping="),
    ("rate complex", lambda: jd.EnergyShell(1.0, 1j), T, "`rate`", "real number"),
    ("rate infinite", lambda: jd.EnergyShell(1.0, INF), V, "`rate`", "must be finite"),
    ("keep a vector", lambda: jd.EnergyShell(1.0, 1.0, keep=X), V, "`keep`", "operator.kernel"),
    ("keep too long", lambda: jd.EnergyShell(1.0, 1.0, keep=2 * U.T), V, "`keep`", "orthonormal"),
    ("a class", lambda: poisson(regulator=jd.EnergyShell), T, "`regulator`", "EnergyShell or None"),
    ("open surfaces", lambda: poisson(jd.ReLU(), regulator=ATTRACT), V, "`regulator`", "Tanh"),
    ("keep of 2 units", lambda: poisson(regulator=SMALL), V, "`regulator.keep`", "3 columns"),
]
DRIFT = [
    ("cell None", lambda f: f(None, X, YS), T, "`cell`", "jaxdyn.PoissonCell"),
    ("cell a class", lambda f: f(jd.PoissonCell, X, YS), T, "`cell`", "jaxdyn.PoissonCell"),
    ("sol None", lambda f: f(CELL, X, None), T, "`sol`", "what simulate returned"),
    ("sol a string", lambda f: f(CELL, X, "sol"), T, "`sol`", "what simulate returned"),
    ("sol integer", lambda f: f(CELL, X, YS.astype(int)), T, "`sol`", r"asarray\(sol, float\)"),
    ("sol complex", lambda f: f(CELL, X, YS * 1j), T, "`sol`", "real"),
    ("sol without times", lambda f: f(CELL, X, X), V, "`sol`", r"shape \(\) \+ \(t, 3\)"),
    ("sol without states", lambda f: f(CELL, X, YS[:0]), V, "`sol`", "save some"),
    ("sol of another batch", lambda f: f(CELL, XS, YS), V, "`sol`", r"\(2,\) \+ \(t, 3\)"),
    ("x0 None", lambda f: f(CELL, None, YS), T, "`x0`", "array of them"),
    ("x0 too short", lambda f: f(CELL, X[:2], YS), V, "`x0`", r"shape \(3,\) or \(b, 3\)"),
    ("x0 NaN", lambda f: f(CELL, X * NAN, YS), V, "`x0`", "must be finite"),
    ("x0 complex", lambda f: f(CELL, X * 1j, YS), T, "`x0`", "real number"),
]
ONE_STEP = [
    ("solver a string", lambda f: f("strang", CELL, X, 0.1), T, "`solver`", "jaxdyn.Strang"),
    ("solver a class", lambda f: f(jd.Strang, CELL, X, 0.1), T, "`solver`", "not the class"),
    ("solver of diffrax", lambda f: f(diffrax.Tsit5(), CELL, X, 0.1), T, "`solver`", "Strang"),
    ("cell None", lambda f: f(jd.Strang(), None, X, 0.1), T, "`cell`", "jaxdyn.PoissonCell"),
    ("x too short", lambda f: f(jd.Strang(), CELL, X[:2], 0.1), V, "`x`", STATE),
    ("x a batch", lambda f: f(jd.Strang(), CELL, XS, 0.1), V, "`x`", STATE),
    ("x None", lambda f: f(jd.Strang(), CELL, None, 0.1), T, "`x`", "real number"),
    ("x NaN", lambda f: f(jd.Strang(), CELL, X * NAN, 0.1), V, "`x`", "must be finite"),
    ("dt zero", lambda f: f(jd.Strang(), CELL, X, 0.0), V, "`dt`", "other than 0"),
    ("dt NaN", lambda f: f(jd.Strang(), CELL, X, NAN), V, "`dt`", "finite number"),
    ("dt a string", lambda f: f(jd.Strang(), CELL, X, "0.1"), T, "`dt`", "finite number"),
    ("t a string", lambda f: f(jd.Strang(), CELL, X, 0.1, t="0"), T, "`t`", "finite number"),
    ("args missing", lambda f: f(jd.Strang(), DRIVEN, X, 0.1), V, "`args`", "as args="),
    ("solver unfit", lambda f: f(jd.Strang(), SHELL, X, 0.1), V, "Strang", "use solver=jaxdyn.RK4"),
]
SOLVERS = [
    ("Taylor", "order 0", lambda: jd.Taylor(0), V, "`order`", "positive integer"),
    ("Taylor", "order a float", lambda: jd.Taylor(4.0), V, "`order`", "positive integer"),
    ("Taylor", "order a string", lambda: jd.Taylor("4"), V, "`order`", "positive integer"),
    ("Taylor", "ReLU", lambda: sim(poisson(jd.ReLU()), solver=jd.Taylor()), V, "ReLU", "use RK4"),
    ("ExactLinear", "tanh", lambda: sim(solver=jd.ExactLinear()), V, "ExactLinear", "use solver="),
    ("ExactLinear", "u(t)", lambda: exact_linear(lambda t: t * U[0]), V, "`args`", "constant"),
    ("DiscreteGradient", "damped", discrete_gradient, V, "DiscreteGradient", "use solver=jaxdyn.S"),
    ("ImplicitMidpoint", "batch", lambda: plain(jd.ImplicitMidpoint(), CELL, XS), V, "`x`", STATE),
    ("RK4", "batch", lambda: plain(jd.RK4(), CELL, XS), V, "`x`", STATE),
    ("Strang", "BacksolveAdjoint", lambda: jax.grad(backsolve)(X), V, "`terms=", "use jaxdyn.RK4"),
    ("poisson_defect", "AntisymmetricCell", antisymmetric_defect, V, "`cell`", "Measure jaxdyn"),
    ("energy_drift", "of an energy", lambda: drift(lambda x: x[0]), V, "`sol`", "its own `fn`"),
    ("energy_drift", "of a dict", lambda: drift(lambda x: {"x": x}), T, "`sol`", "Save states"),
]
REVERSIBLE = [
    ("every 0", lambda r: r(0), V, "`checkpoint_every`", ">= 1.*None keeps no state"),
    ("every negative", lambda r: r(-1), V, "`checkpoint_every`", ">= 1.*None keeps no state"),
    ("every a float", lambda r: r(1.5), T, "`checkpoint_every`", "integer >= 1.*or None"),
    ("every a boolean", lambda r: r(True), T, "`checkpoint_every`", "integer >= 1.*or None"),
    ("every a string", lambda r: r("8"), T, "`checkpoint_every`", "integer >= 1.*or None"),
    ("error zero", lambda r: r(error=0), V, "`error`", "> 0.*None takes the default"),
    ("error negative", lambda r: r(error=-1e-6), V, "`error`", "> 0.*None takes the default"),
    ("error NaN", lambda r: r(error=NAN), V, "`error`", "a number > 0"),
    ("error a string", lambda r: r(error="small"), T, "`error`", "a number > 0"),
    ("a class", lambda r: sim(adjoint=r), T, "`adjoint`", "object, not the class"),
    ("RK4", lambda r: sim(solver=jd.RK4(), adjoint=r()), V, "RK4", "use solver=jaxdyn.Strang"),
    ("ExactLinear", lambda r: exact_linear(U[0], adjoint=r()), V, "ExactLinear", "use solver="),
    ("Tsit5", lambda r: sim(solver=TSIT5, adjoint=r()), V, "Tsit5", "use solver=jaxdyn.Strang"),
    ("HalfSolver", lambda r: sim(solver=HALVED, adjoint=r()), V, "HalfSolver", "use solver="),
    ("damping", lambda r: sim(INSIDE, adjoint=r()), V, "`cell` has damping", "leave `adjoint` out"),
    ("a shell", lambda r: shell(adjoint=r()), V, "`cell` has an EnergyShell", "leave `adjoint`"),
    ("noise", lambda r: sim(DRIVEN, args=NOISE, adjoint=r()), V, "`args` is a Brownian", "leave"),
    ("adaptive", lambda r: adaptive(adjoint=r()), V, "`adjoint=.*fixed steps", "Recursive"),
    ("an event", lambda r: sim(event=EVENT, adjoint=r()), V, "without `event`", "Recursive"),
    ("dense", lambda r: saves(dense=True, adjoint=r()), V, "SaveAt's dense", "Recursive"),
    ("traced saves", lambda r: traced_save(r()), V, "concrete save times", "Recursive"),
    ("diffeqsolve", lambda r: plain(jd.Strang(), CELL, adjoint=r()), V, "`adjoint=.*", "Recursive"),
    ("rounding", lambda r: lossy(r(error=1e-300)), R, "`error` of the Rev", "`checkpoint_every`"),
]
INTERVAL = [
    ("cell None", lambda: interval(None), T, "`cell`", "jaxdyn.PoissonCell"),
    ("x0 too short", lambda: interval(x0=X[:2]), V, "`x0`", r"shape \(3,\)"),
    ("error zero", lambda: interval(error=0.0), V, "`error`", "> 0"),
    ("error None", lambda: interval(error=None), T, "`error`", "number > 0"),
    ("no steps", lambda: interval(n_steps=0), V, "`n_steps`", ">= 1"),
    ("dt zero", lambda: interval(dt=0.0), V, "`dt`", "> 0"),
    ("RK4", lambda: interval(solver=jd.RK4()), V, "RK4", "use solver=jaxdyn.Strang"),
    ("damping", lambda: interval(INSIDE), V, "`cell` has damping", "leave `adjoint` out"),
    ("input missing", lambda: interval(DRIVEN), V, "`args`", "as args="),
    ("out of reach", lambda: interval(error=1e-300), V, "`error`", "Take a larger one"),
]
GRIDS = [
    ("not a power of 2", lambda s: s(grid=1e-9), V, "`grid`", "power of two"),
    ("zero", lambda s: s(grid=0.0), V, "`grid`", "power of two"),
    ("negative", lambda s: s(grid=-(2.0**-36)), V, "`grid`", "power of two"),
    ("infinite", lambda s: s(grid=INF), V, "`grid`", "power of two"),
    ("NaN", lambda s: s(grid=NAN), V, "`grid`", "power of two"),
    ("a boolean", lambda s: s(grid=True), V, "`grid`", "power of two"),
    ("a string", lambda s: s(grid="fine"), V, "`grid`", "power of two"),
    ("antisymmetric", lambda s: gridded(s, ANTISYMMETRIC), V, "`grid`", "leave `grid` out"),
]
SPLITTINGS = (jd.Strang, jd.BlanesMoan4, jd.Suzuki4, jd.Yoshida4, jd.Yoshida6)
OURS = (*SPLITTINGS, jd.Taylor, jd.DiscreteGradient, jd.ImplicitMidpoint, jd.ExactLinear)
OPERATORS = (
    jd.BandedSkew,
    jd.BipartiteSkew,
    jd.BlockSkew,
    jd.CirculantSkew,
    jd.DenseSkew,
    jd.LowRankSkew,
    jd.SparseSkew,
    jd.SpectralSkew,
)
ACTIVATIONS = [
    getattr(jd, name)
    for name in dir(jd)
    if inspect.isclass(getattr(jd, name))
    and issubclass(getattr(jd, name), jd.AbstractActivation)
    and not name.startswith("Abstract")
]
FORMULAS = [
    ("period", "energy negative", lambda: jd.period(-1.0), V, "energy", ">= 0"),
    ("period", "energy a string", lambda: jd.period("1"), T, "energy", "real number"),
    ("period", "frequency zero", lambda: jd.period(1.0, 0.0), V, "frequency", "> 0"),
    ("energy_of_period", "NaN", lambda: jd.energy_of_period(NAN), V, "period", "finite"),
    ("orbit", "energy None", lambda: jd.orbit(0.0, None), T, "energy", "real number"),
    ("harmonics", "energy infinite", lambda: jd.harmonics(INF, k=3), V, "energy", "finite"),
    ("monodromy", "x of 3 units", lambda: jd.monodromy(X, 1.0), V, "x", r"shape \(2,\)"),
    ("shell_multiplier", "energy", lambda: jd.shell_multiplier(-1.0, 0.1), V, "energy", ">= 0"),
    ("euler_energy", "dt zero", lambda: jd.euler_energy(1.0, 1.0, 1.0, 0.0), V, "dt", "> 0"),
    ("euler_energy_linear", "n_steps", lambda: euler_steps(1.5), T, "n_steps", "a whole number"),
    ("euler_max_step", "n zero", lambda: jd.euler_max_step(1.0, 1.0, 0, 1.0), V, "n", "at least 1"),
    ("backbone", "W not skew", lambda: jd.backbone(jnp.eye(3), X), V, "W", "skew part"),
    ("equilibrium_frequency", "W", lambda: jd.equilibrium_frequency(W, 9.0), V, "l", "within"),
    ("DenseSkew", "entries", lambda: jd.DenseSkew(jnp.ones(2)), V, "`entries`", "take n"),
    ("DenseSkew", "entries complex", lambda: jd.DenseSkew(X * 1j), T, "`entries`", "real"),
    ("DenseSkew", "float64 without x64", float64_without_x64, V, "`dtype`", "jax_enable_x64"),
    ("FunctionActivation", "a string", lambda: jd.FunctionActivation("tanh"), T, "fn", "function"),
    ("ELU", "alpha negative", lambda: jd.ELU(-1.0), V, "alpha", "positive"),
    ("LeakyReLU", "slope a string", lambda: jd.LeakyReLU("x"), T, "slope", "real number"),
]


BOTH = {"engine": jd.Threads(2), "adjoint": jd.ReversibleAdjoint()}
THREADS = [
    ("no worker", lambda: jd.Threads(0), V, "`workers`", ">= 1.*None takes every core"),
    ("half a worker", lambda: jd.Threads(0.5), T, "`workers`", "integer >= 1 or None"),
    ("a number of them", lambda: sim(engine=2), T, "`engine`", "a jaxdyn.Threads"),
    ("a number of devices", lambda: sim(mesh=2), T, "`mesh`", "a jax.sharding.Mesh"),
    ("inside jit", lambda: traced(lambda _: sim(engine=jd.Threads())), V, "`engine", "leave it"),
    ("with an adjoint", lambda: sim(**BOTH), V, "`engine", "leave `adjoint` out"),
    ("Tsit5", lambda: sim(solver=TSIT5, engine=jd.Threads()), V, "`engine", "leave it out"),
    ("progress", lambda: sim(engine=jd.Threads(), progress=True), V, "`progress", "leave it out"),
]


def by_kernel(**options):
    options = {"n_steps": 1, "engine": jd.Kernel(interpret=True), **options}
    return sim(**options)


def inputs_of_all(t):
    return jnp.ones((2, 2)) * t


def many_units():
    cell = jd.PoissonCell(jd.BlockSkew(np.ones(65)), jd.Tanh())
    return by_kernel(cell=cell, x0=np.ones(130))


def in_tf32(**options):
    return by_kernel(engine=jd.Kernel(interpret=True, precision=TF32), **options)


SHORT = diffrax.LinearInterpolation(PATH.ts, PATH.ys[:, :2])
ADAPTED = {"solver": TAYLOR, "stepsize_controller": CONTROLLER}
NO_GPU = jd.Kernel()
TF32, F64 = (getattr(jax.lax.DotAlgorithmPreset, p) for p in ("TF32_TF32_F32", "F64_F64_F64"))
KERNELS = [
    ("no power of two", lambda: jd.Kernel(96), V, "`tile`", "power of two from 1 to 1024, got 96"),
    ("too many", lambda: jd.Kernel(2048), V, "`tile`", "power of two from 1 to 1024"),
    ("half a lane", lambda: jd.Kernel(0.5), T, "`tile`", "power of two such as 128 or None"),
    ("interpret a number", lambda: jd.Kernel(interpret=1), T, "`interpret`", "True or False"),
    ("precision a word", lambda: jd.Kernel(precision="tf32"), T, "`precision`", "TF32_TF32_F32"),
    ("precision", lambda: jd.Kernel(precision=F64), V, "`precision`", "got .*F64_F64_F64"),
    ("TF32 in float64", in_tf32, V, "`precision`.*float32.*float64", "leave it out"),
    ("no GPU", lambda: by_kernel(engine=NO_GPU), V, "`engine=jaxdyn.Kernel`.*GPU", "leave `engine"),
    ("Tsit5", lambda: by_kernel(solver=TSIT5), V, "`engine.*`solver`", "leave `engine` out"),
    ("implicit", lambda: by_kernel(solver=jd.ImplicitMidpoint()), V, "`engine", "solver=jaxdyn.St"),
    ("adaptive", lambda: by_kernel(**ADAPTED), V, "`engine=jaxdyn.Kernel", "leave it out"),
    ("event", lambda: by_kernel(event=EVENT), V, "`engine=jaxdyn.Kernel", "`event`.*leave it out"),
    ("adjoint", lambda: by_kernel(adjoint=diffrax.DirectAdjoint()), V, "`engine", "leave it out"),
    ("progress", lambda: by_kernel(progress=True), V, "`progress", "leave it out"),
    (
        "a path",
        lambda: by_kernel(cell=DRIVEN, args=SHORT_PATH),
        V,
        "cannot carry out",
        "`engine` o",
    ),
    (
        "inputs of all",
        lambda: by_kernel(cell=DRIVEN, x0=XS, args=inputs_of_all),
        V,
        "`args`",
        "stack of eqx.Modules",
    ),
    ("many units", many_units, V, "up to 128 units, and `cell` has 130", "leave `engine` out"),
]


Y = np.sin(0.3 * np.arange(100.0))


def train(signal=Y, **options):
    return jd.fit(signal, **{"dt": 0.3, "units": 3, "restarts": 1, "key": KEY, **options})


def encode(signals, **options):
    return jd.fit_encoder(signals, **{"dt": 0.3, "context": 20, "key": KEY, **options})


def fitted():
    """What `fit` returns, without the work."""
    signal = jd.signals.Signal.of(Y, dt=0.3)
    return jd.Fit(jd.Oscillator(X, CELL), 0.0, np.zeros(1), 0, None, {}, signal, signal)


# test_bad_training.py and test_encoder.py have many more.
TRAINING = [
    ("fit", "NaN", lambda: train(Y * NAN), V, "NaN at sample 0", "mask=~np.isnan"),
    ("fit", "a trend", lambda: train(np.arange(100.0)), V, "`signal`", "at least 2"),
    ("fit", "mesh", lambda: train(mesh=2), T, "`mesh`", "jax.sharding.Mesh"),
    ("fit", "key a seed", lambda: train(key=0), T, "`key`", "jax.random.key"),
    ("Fit", "save nowhere", lambda: fitted().save("/no/m"), "OSError", "No such", "/no/m"),
    ("save_module", "module", lambda: jd.save_module("x.eqx", 3), T, "`module`", "numpy.save"),
    ("load_module", "like", lambda: jd.load_module("x.eqx", like=3), T, "`like`", "module"),
    ("Oscillator", "x0", lambda: jd.Oscillator(X[:2], CELL), V, "`x0`", r"shape \(3,\)"),
    ("Oscillator", "cell", lambda: jd.Oscillator(X, W), T, "`cell`", "jaxdyn.PoissonCell"),
    ("fit_encoder", "a signal", lambda: encode(fitted().signal), T, "`signals`", "a list"),
    ("fit_encoder", "context", lambda: encode([Y], context=1), V, "`context`", ">= 2"),
    ("Readout", "a vector", lambda: jd.Readout(X), V, "`matrix`", r"shape \(m, n\)"),
]


def chaos(function, field=CELL, x0=X, t1=20.0, dt=0.1, **options):
    return function(field, x0, t1, dt, **options)


def cross(**options):
    return chaos(jd.poincare_section, **{"normal": 0, **options})


def shells(**change):
    given = {"start": X, "parameter": 1.0, "between": (0.0, 2.0)} | change
    return jd.cycle_family(lambda p: SHELL, **given)


def close(x=X, period=6.0, **options):
    return jd.periodic_orbit(CELL, x, period, **options)


# test_lyapunov.py, test_periodic.py, test_section.py, test_frequencies.py and test_fixed_points.py
# have many more.
ANALYSIS = [
    ("lyapunov_spectrum", "k", lambda: chaos(jd.lyapunov_spectrum, k=4), V, "`k`", "at most n = 3"),
    ("lyapunov_spectrum", "t1", lambda: chaos(jd.lyapunov_spectrum, t1=1.0), V, "`t1`", "at least"),
    ("max_lyapunov", "dt", lambda: chaos(jd.max_lyapunov, dt=-0.1), V, "`dt`", "> 0"),
    ("max_lyapunov", "field", lambda: chaos(jd.max_lyapunov, W), T, "`field`", "a cell or"),
    ("gali", "k", lambda: chaos(jd.gali, k=1), V, "`k`", ">= 2"),
    ("gali", "NaN", lambda: chaos(jd.gali, x0=NANS), V, "`x0`", "finite"),
    ("sali", "every", lambda: chaos(jd.sali, every=0.5), T, "`every`", "integer >= 1"),
    ("verdict", "an exponent", lambda: jd.verdict(0.1), T, "`spectrum`", "max_lyapunov"),
    ("periodic_orbit", "rest", lambda: close(0 * X), V, "`x_guess`", "no orbit goes through"),
    ("periodic_orbit", "period", lambda: close(period=-1.0), V, "`period_guess`", "> 0"),
    ("periodic_orbit", "short", lambda: close(period=0.01), R, "no periodic orbit", "nearer"),
    ("floquet", "a state", lambda: jd.floquet(X), T, "`orbit`", "periodic_orbit"),
    (
        "cycle_family",
        "start",
        lambda: jd.cycle_family(lambda p: SHELL, 0, 1.0, between=(0.0, 2.0)),
        T,
        "`start`",
        "periodic_orbit",
    ),
    ("orbit_family", "start", lambda: jd.orbit_family(CELL, 1), V, "`start`", "a mode from 0 to 0"),
    ("orbit_family", "cell", lambda: jd.orbit_family(SHELL, 0), V, "`cell`", "neither driven"),
    ("poincare_section", "normal", lambda: cross(normal=3), V, "`normal`", "below 3"),
    ("poincare_section", "zero", lambda: cross(normal=0 * X), V, "`normal`", "not 0"),
    ("poincare_section", "direction", lambda: cross(direction=2), V, "`direction`", "1, -1 or 0"),
    ("poincare_section", "far", lambda: cross(offset=99.0), R, "no trajectory crosses", "`offset`"),
    ("frequencies", "short", lambda: jd.frequencies(Y[:25], 0.1), V, "`signal`", "two periods"),
    ("frequencies", "dt", lambda: jd.frequencies(Y, 0.0), V, "`dt`", "above 0"),
    ("power_spectrum", "NaN", lambda: jd.power_spectrum(Y * NAN, 0.1), V, "`signal`", "finite"),
    ("frequency_map", "k", lambda: jd.frequency_map(Y, 0.1, 0), V, "`k`", "1"),
    ("fixed_points", "field", lambda: jd.fixed_points(3), T, "`field`", "jaxdyn.PoissonCell"),
    (
        "fixed_points",
        "no starts",
        lambda: jd.fixed_points(lambda t, x, a: x),
        V,
        "`starts`",
        "give",
    ),
]


def refused() -> list[Case]:
    cases = [Case("simulate", *case) for case in SIMULATE]
    for what, call, error, cure in ARGS:
        cases.append(Case("simulate", f"args {what}", call, error, "`args`", cure))
    cases += [Case("EnergyShell", *case) for case in SHELLS]
    cases += [Case(*case) for case in SOLVERS + FORMULAS + TRAINING + ANALYSIS]
    for fn, table in (
        (jd.PoissonCell, MAKE),
        (jd.AntisymmetricCell, MAKE),
        (jd.energy_drift, DRIFT),
        (jd.casimir_drift, DRIFT),
        (jd.poisson_defect, ONE_STEP),
        (jd.reversibility_error, ONE_STEP),
        (jd.ReversibleAdjoint, REVERSIBLE),
        *((solver, GRIDS) for solver in SPLITTINGS),
    ):
        for what, call, *rest in table:
            cases.append(Case(fn.__name__, what, lambda fn=fn, call=call: call(fn), *rest))
    cases += [Case("reversal_interval", *case) for case in INTERVAL]
    cases += [Case("Threads", *case) for case in THREADS]
    cases += [Case("Kernel", *case) for case in KERNELS]
    for solver in SPLITTINGS:
        name = solver.__name__
        shell, damped = (
            lambda cell=cell, solver=solver: sim(cell, solver=solver()) for cell in (SHELL, DAMPED)
        )
        cases.append(Case(name, "EnergyShell", shell, V, name, "use solver=jaxdyn.RK4"))
        cases.append(Case(name, "damped Arctan", damped, V, name, r"jaxdyn.DiscreteGradient\(\)"))
    for solver in OURS:
        bare = lambda solver=solver: plain(solver())  # noqa: E731
        terms = r"`terms=diffrax.ODETerm\(cell\)`"
        cases.append(Case(solver.__name__, "a plain field", bare, V, terms, "use jaxdyn.RK4"))
    for operator in OPERATORS:
        name = operator.__name__
        for what, call, error, argument, cure in (
            ("no units", lambda o: o.random(0, key=KEY), V, "`n`", "at least"),
            ("key a seed", lambda o: o.random(4, key=0), T, "`key`", "jax.random.key"),
            ("W not skew", lambda o: o.from_matrix(jnp.eye(2)), V, "`W`", "skew part"),
            ("W empty", lambda o: o.from_matrix(jnp.zeros((0, 0))), V, "`W`", "at least one"),
            ("W a string", lambda o: o.from_matrix("W"), T, "`W`", "real"),
        ):
            cases.append(Case(name, what, lambda o=operator, c=call: c(o), error, argument, cure))
    for activation in ACTIVATIONS:
        options = (jnp.sin,) if activation is jd.FunctionActivation else ()
        call = lambda a=activation, options=options: a(*options)(INTEGERS)  # noqa: E731
        cases.append(Case(activation.__name__, "integers", call, T, "x must be", "Convert it"))
    for number, (change, *says) in enumerate(SWEPT):
        what = f"{', '.join(change)} {number}"
        call = lambda change=change: sweeping(**change)  # noqa: E731
        cases.append(Case("sweep", what, call, *says))
    for what, *solve in DIVERGING:
        call = lambda solve=solve: diverge(*solve)  # noqa: E731
        message = ("state became infinite or NaN", "Take a smaller `dt`")
        cases.append(Case("simulate", f"{what} diverges", call, R, *message))
    return cases


def sweeping(cell=CELL, x0=XS, **change):
    return jd.sweep(cell, x0, **{"t1": 1.03, "dt": 0.1} | change)


ONE_EACH = {"a": np.ones(2)}
SWEPT: list[tuple[dict, str, str, str]] = [
    ({"cell": "cell"}, T, "`cell` must be", "or a function"),
    ({"cell": jd.PoissonCell}, T, "`cell` must be", "or a function"),
    ({"cell": lambda a: CELL}, T, "`parameters` must be a dict", "one row for each"),
    ({"parameters": ONE_EACH}, V, "`parameters` are those of a `cell`", "leave them out"),
    ({"cell": lambda a: CELL, "parameters": {"b": np.ones(2)}}, T, "`cell`", "a function of b"),
    ({"cell": lambda a: CELL, "parameters": {"a": np.ones(5)}}, V, "`x0` 2", "be the same"),
    ({"cell": lambda a: CELL, "parameters": {"a": 1.0}}, V, r'`parameters\["a"\]`', "one row"),
    ({"cell": lambda a: CELL, "parameters": {"a": ["x"] * 2}}, T, "`parameters", "give seeds"),
    ({"cell": lambda a: CELL, "parameters": {"no name": XS}}, V, "`parameters`", "which must"),
    ({"cell": lambda a: CELL, "parameters": {"time": XS}}, V, "`parameters`", "none of member"),
    ({"cell": lambda a: CELL, "parameters": {"a": [1, 2**70]}}, T, "`parameters", "hold numbers"),
    ({"cell": lambda a: 3, "parameters": ONE_EACH}, T, "`cell` must be", "it returned 3"),
    ({"x0": X}, V, "`x0` must have shape", "a row for each"),
    ({"x0": XS[:, :2]}, V, "`x0` must have shape", r"\(b, 3\)"),
    ({"x0": XS[:0]}, V, "`x0` is an empty batch", "at least one"),
    ({"x0": "x"}, T, "`x0` must hold", "real numbers"),
    ({"x0": np.ones((2, 3)) * 1j}, T, "`x0` must be real", "x0.real"),
    ({"x0": XS * NAN}, V, "`x0` holds NaN", "must be finite"),
    ({"x0": lambda cell, key: X}, T, "`key` must be", r"jax.random.key\(0\)"),
    ({"x0": lambda cell, key: X, "key": 3}, T, "`key` must be", r"jax.random.key\(0\)"),
    ({"x0": lambda cell, key: X, "key": KEY}, V, "`trajectories`", "how many there are"),
    ({"x0": lambda c, k: X[:2], "key": KEY, "trajectories": 2}, V, "`x0` must return", r"\(3,\)"),
    ({"key": KEY}, V, "`key` is for", "leave it out"),
    ({"trajectories": 40}, V, "`trajectories` 40", "must be the same"),
    ({"trajectories": 1.5}, V, "`trajectories`", "an integer >= 1"),
    ({"t1": 0.0}, V, "`t1`", "take a later one"),
    ({"dt": -0.1}, V, "`dt`", "must be > 0"),
    ({"n_steps": 3}, V, "`t1`", "exactly one"),
    ({"cell": DRIVEN, "args": jnp.ones(3)}, V, "args", r"\(2,\)"),
    ({"solver": "strang"}, T, "`solver`", "a solver object"),
    ({"solver": jd.ExactLinear()}, V, "ExactLinear", "jaxdyn.Taylor"),
    ({"keep": []}, T, "`keep` must be a dict", "EnergyDrift"),
    ({"keep": {"time": len}}, V, "`keep`", "none of member, status, time"),
    ({"keep": {"a": jd.reductions.FinalState}}, T, r'`keep\["a"\]`', "not the class"),
    ({"keep": {"a": lambda t: {"b": 1}, "a_b": lambda t: 1}}, V, "`keep`", "another"),
    ({"keep": {"a": lambda t: {"b/c": t.x0}}}, V, r'`keep\["a"\]`', "another name"),
    ({"keep": {"a": lambda t: t.states[:0]}}, T, r'`keep\["a"\]`', "none of them empty"),
    ({"keep": {"a": lambda t: t.x0.astype("bfloat16")}}, T, r'`keep\["a"\]`', "numbers"),
    ({"attributes": {"dt": 3}}, V, "`attributes`", "give another"),
    ({"store": "s3://bucket/x"}, V, "`store`", "folder of this machine"),
    ({"every": 0}, V, "`every`", "an integer >= 1"),
    ({"every": 12}, V, "`every`", "at most 11"),
    ({"chunk": 2.0}, T, "`chunk`", "an integer >= 1"),
    ({"retries": -1}, V, "`retries`", "an integer >= 0"),
    ({"resume": True}, V, "`resume=True`", "say which"),
    ({"store": 3}, T, "`store`", "name of a folder"),
    ({"store": os.path.join("no", "where")}, "OSError", "no such folder", "'?.*no'?"),
    ({"attributes": {"a": {1}}}, T, "`attributes`", "what JSON can hold"),
    ({"engine": jd.Threads(), "mesh": jax.make_mesh((1,), ("b",))}, V, "`mesh`", "leave one"),
    ({"engine": jd.Kernel()}, T, "`engine` of a sweep", "a jaxdyn.Threads or None"),
    ({"mesh": 2}, T, "`mesh`", "jax.sharding.Mesh"),
    ({"progress": 1}, T, "`progress`", "True or False"),
]


DIVERGING = [
    ("Euler", LINEAR, diffrax.Euler(), 1e3),
    ("Strang", LINEAR, jd.Strang(), 1e3),
    ("DiscreteGradient", CELL, jd.DiscreteGradient(), 1e8),
    ("ImplicitMidpoint", CELL, jd.ImplicitMidpoint(), 1e8),
]
ACCEPTED = [
    ("integers are promoted", lambda: sim(x0=INTEGERS).ys.dtype == jnp.float64),
    ("integers are promoted, x64 off", without_x64),
    ("integer save times", lambda: saves(ts=[0, 1]).ys.shape == (2, 3)),
    ("x0 a constant in jit", lambda: bool(traced(lambda h: sim(dt=h, n_steps=1).ys[0, 0]) < 1)),
    ("no length", lambda: stays(X)),
    ("no length, batch", lambda: stays(XS)),
    ("no length, steps", lambda: stays(XS, saveat=SaveAt(steps=True))),
    ("no length, ts", lambda: stays(XS, saveat=SaveAt(t0=True, ts=[2.0, 2.0]))),
    ("no length, Tsit5", lambda: stays(X, solver=TSIT5)),
    ("no length, Tsit5, batch", lambda: stays(XS, solver=TSIT5)),
    ("no length, DirectAdjoint", lambda: stays(X, adjoint=diffrax.DirectAdjoint())),
    ("no length, Taylor", lambda: stays(X, solver=TAYLOR, stepsize_controller=CONTROLLER)),
    ("no length, Taylor, batch", lambda: stays(XS, solver=TAYLOR, stepsize_controller=CONTROLLER)),
    ("no steps", lambda: np.array_equal(sim(n_steps=0).ys[0], X)),
    ("a wrapped solver", halves),
    *((f"{what} alone", lambda solve=solve: fails_alone(*solve)) for what, *solve in DIVERGING),
    ("a failure that fn hides", hidden_failure),
    ("the drift of stored steps", drift_of_stored_steps),
    ("the drift of a negative energy", drift_of_negative_energy),
]
REFUSED = refused()
BORDER = [Case("simulate", *case) for case in ACCEPTED]


def report() -> dict[str, Any]:
    """What each call does: the value it returns, or the classes and the message of its error."""
    outcomes = {}
    for case in [*REFUSED, *BORDER]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome = {"returned": repr(case.call())[:300]}
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                outcome = {"kinds": kinds, "message": str(error)}
        outcomes[case.id] = {**outcome, "warnings": [str(w.message) for w in caught]}
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_refused(outcomes, case):
    outcome = outcomes[case.id]
    assert "message" in outcome, f"returned {outcome['returned']}"
    message = outcome["message"]
    assert case.error in outcome["kinds"], (outcome["kinds"], message)
    assert re.search(case.argument, message, re.DOTALL), message
    assert re.search(case.cure, message, re.DOTALL), message
    assert not outcome["warnings"]


@pytest.mark.parametrize("case", BORDER, ids=lambda case: case.id)
def test_accepted(outcomes, case):
    outcome = outcomes[case.id]
    assert outcome.get("returned") == "True", outcome


def test_every_public_name_has_a_case():
    """Base classes and modules apart, and what nobody but the package makes."""
    public = {
        name
        for name, value in ((name, getattr(jd, name)) for name in dir(jd))
        if callable(value) and not name.startswith(("_", "Abstract"))
    }
    made = {"EncodedOscillator", "Progress", "LyapunovSpectrum", "Indicator", "PeriodicOrbit"}
    made |= {"FloquetMultipliers", "PoincareSection", "Frequencies", "PowerSpectrum"}
    made |= {"FrequencyMap", "FixedPoints", "OrbitFamily", "CycleFamily", "Bifurcation", "Sweep"}
    assert public - {case.subject for case in REFUSED} == made


if __name__ == "__main__":
    print(json.dumps(report()))
