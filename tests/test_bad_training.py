"""Bad input of fits, losses, initialisers and oscillators: refused by name, with a cure.

As in test_bad_input.py all cases run in one process of its own, without the annotation checks of
conftest.py, which users do not have. A case that computed something first would take seconds.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxdyn as jd
from jaxdyn import initialisers as i
from jaxdyn import losses as l
from jaxdyn import signals as s

pytestmark = pytest.mark.xdist_group("bad_training")

T, V = "TypeError", "ValueError"
NAN, INF = float("nan"), float("inf")
KEY = jr.key(0)
Y = np.sin(0.3 * np.arange(100.0))
HOLE = np.where(np.arange(100) == 7, NAN, Y)
IRREGULAR = np.sort(np.random.default_rng(0).uniform(0, 30, 100))
CELL = jd.PoissonCell(jd.DenseSkew.random(3, key=KEY), jd.Tanh())
DRIVEN = jd.PoissonCell(CELL.operator, jd.Tanh(), input_matrix=np.ones((3, 1)))
X = jnp.array([0.5, 0.2, -0.3])
MODEL = jd.Oscillator(X, CELL)
SHELL = jd.PoissonCell(CELL.operator, jd.Tanh(), regulator=jd.EnergyShell(1.0, 0.1))
OTHERS = jd.AntisymmetricCell(CELL.operator, jd.Tanh())
# One gap of a million others.
GAPS = np.concatenate([np.arange(50.0), 1e6 + np.arange(50.0)])
FOLDER = tempfile.gettempdir()


class Case(NamedTuple):
    subject: str
    what: str
    call: Callable[[], Any]
    error: str
    argument: str
    cure: str

    @property
    def id(self) -> str:
        return f"{self.subject}: {self.what}"


def fit(signal=Y, **options):
    settings = {"dt": 0.3, "units": 3, "restarts": 1, "key": KEY}
    settings = {k: v for k, v in {**settings, **options}.items() if v is not ...}
    return jd.fit(signal, **settings)


def osc(x0=X, cell=CELL, readout=None, **options):
    return jd.Oscillator(x0, cell, readout, **options)


SIGNALS = [
    ("signal None", lambda: fit(None), T, "`values`", "real numbers"),
    ("signal a string", lambda: fit("signal.csv"), T, "`values`", "real numbers"),
    ("signal complex", lambda: fit(Y + 1j), T, "`values`.*complex", "convert"),
    ("signal boolean", lambda: fit(Y > 0), T, "`values`.*truth", "convert"),
    ("signal objects", lambda: fit(Y.astype(object)), T, "`values`.*objects", "convert"),
    ("signal text", lambda: fit(Y.astype(str)), T, "`values`.*text", "convert"),
    ("signal with NaN", lambda: fit(HOLE), V, "NaN at sample 7", "mask=~np.isnan"),
    ("signal infinite", lambda: fit(np.where(Y > 0.99, INF, Y)), V, "`values`", "finite"),
    ("signal constant", lambda: fit(0 * Y + 2), V, "constant", "leave it out"),
    ("signal empty", lambda: fit(Y[:0]), V, "`values`", "at least 2 samples"),
    ("one sample", lambda: fit(Y[:1]), V, "`values`", "at least 2 samples"),
    ("nine samples", lambda: fit(Y[:9]), V, "`signal` leaves", "at least 8, or a smaller"),
    ("three axes", lambda: fit(Y.reshape(2, 5, 10)), V, "`values`", r"shape \(t,\) or \(t, m\)"),
    ("too few periods", lambda: fit(Y[:30]), V, "`signal` shows 0", "smaller `holdout`"),
    ("a trend", lambda: fit(np.arange(100.0)), V, "`signal` shows", "give at least 2"),
    ("constant head", lambda: fit(np.r_[0 * Y, 0 * Y, Y]), V, "`signal`: channel", "drop it"),
    ("neither dt nor ts", lambda: fit(dt=...), V, "`dt` or `ts`", "exactly one"),
    ("both dt and ts", lambda: fit(ts=IRREGULAR), V, "`dt` or `ts`", "exactly one"),
    ("dt of a Signal", lambda: fit(s.tones([1.0])), V, "Signal", "leave `dt`"),
    ("dt zero", lambda: fit(dt=0.0), V, "`dt`", "> 0"),
    ("dt a string", lambda: fit(dt="0.1"), T, "`dt`", "real number"),
    ("ts decreasing", lambda: fit(dt=None, ts=-IRREGULAR), V, "`ts`", "sort the samples"),
    ("ts too short", lambda: fit(dt=None, ts=IRREGULAR[1:]), V, "`ts`", "one time per sample"),
    ("ts with a gap", lambda: fit(dt=None, ts=GAPS), V, "`signal` has a gap", "thin out"),
    ("mask of numbers", lambda: fit(mask=Y), T, "`mask`", "asarray"),
    ("mask too short", lambda: fit(mask=Y[1:] > 0), V, "`mask`", "shape"),
    ("mask of nothing", lambda: fit(mask=Y > 2), V, "fewer than 2 measured", "leave"),
]
NUMBERS = [
    ("units fewer than channels", lambda: fit(np.stack([Y] * 4, 1)), V, "`units`", "at least"),
    ("units one", lambda: fit(units=1), V, "`units`", "integer >= 2"),
    ("units a float", lambda: fit(units=4.0), T, "`units`", "integer >= 2"),
    ("restarts zero", lambda: fit(restarts=0), V, "`restarts`", "integer >= 1"),
    ("restarts a boolean", lambda: fit(restarts=True), T, "`restarts`", "integer >= 1"),
    ("key left out", lambda: fit(key=...), T, "'key'", "required keyword"),
    ("key a seed", lambda: fit(key=0), T, "`key`", r"jax.random.key\(0\)"),
    ("key a stack", lambda: fit(key=jr.split(KEY, 2)), T, "`key`", r"jax.random.key\(0\)"),
    ("key floats", lambda: fit(key=jnp.ones(2)), T, "`key`", r"jax.random.key\(0\)"),
    ("init a class", lambda: fit(init=i.Random), T, "`init`", r"FrequenciesFirst\(\)"),
    ("init a string", lambda: fit(init="random"), T, "`init`", "jaxdyn.initialisers"),
    ("loss a string", lambda: fit(loss="mse"), T, "`loss`", r"Trajectory\(\)"),
    ("loss a class", lambda: fit(loss=l.Trajectory), T, "`loss`", r"Trajectory\(\)"),
    ("optimiser a string", lambda: fit(optimiser="adam"), T, "`optimiser`", r"optax.adam\(1e-3\)"),
    ("optimiser a maker", lambda: fit(optimiser=optax.adam), T, "`optimiser`", "optax.adam"),
    ("solver a string", lambda: fit(solver="rk4"), T, "`solver`", r"jaxdyn.RK4\(\)"),
    ("solver a class", lambda: fit(solver=jd.RK4), T, "`solver`", r"jaxdyn.RK4\(\)"),
    ("solver unfit", lambda: fit(solver=jd.Strang(), shell=0.1), V, "Strang", "use solver="),
    ("steps negative", lambda: fit(steps=-1), V, "`steps`", "integer >= 0"),
    ("steps a float", lambda: fit(steps=1e3), T, "`steps`", "integer >= 0"),
    ("polish negative", lambda: fit(polish=-5), V, "`polish`", "integer >= 0"),
    ("horizon zero", lambda: fit(horizon=0), V, "`horizon`", r"fraction in \(0, 1\]"),
    ("horizon above 1", lambda: fit(horizon=2.0), V, "`horizon`", r"fraction in \(0, 1\]"),
    ("horizon None", lambda: fit(horizon=None), T, "`horizon`", r"fraction in \(0, 1\]"),
    ("holdout one", lambda: fit(holdout=1.0), V, "`holdout`", r"fraction in \[0, 1\)"),
    ("holdout all", lambda: fit(holdout=100), V, "`holdout`", "samples below 100"),
    ("holdout negative", lambda: fit(holdout=-0.1), V, "`holdout`", r"fraction in \[0, 1\)"),
    ("holdout NaN", lambda: fit(holdout=NAN), V, "`holdout`", r"fraction in \[0, 1\)"),
    ("holdout a string", lambda: fit(holdout="1"), T, "`holdout`", r"fraction in \[0, 1\)"),
    ("validation all", lambda: fit(validation=80), V, "`validation`", "samples below 80"),
    ("validation None", lambda: fit(validation=None), T, "`validation`", r"fraction in \[0, 1\)"),
    ("patience zero", lambda: fit(patience=0), V, "`patience`", "integer >= 1"),
    ("tolerance zero", lambda: fit(tolerance=0), V, "`tolerance`", r"number in \(0, 1\]"),
    ("ridge zero", lambda: fit(ridge=0), V, "`ridge`", "small number > 0"),
    ("ridge NaN", lambda: fit(ridge=NAN), V, "`ridge`", "small number > 0"),
    ("shell zero", lambda: fit(shell=0), V, "`shell`", "rate > 0"),
    ("shell an EnergyShell", lambda: fit(shell=jd.EnergyShell(1.0, 1.0)), T, "`shell`", "rate"),
    ("weights too short", lambda: fit(weights=Y[1:]), V, "`weights`", r"shape \(100,\) or"),
    ("weights negative", lambda: fit(weights=Y), V, "`weights`", "finite and >= 0"),
    ("weights NaN", lambda: fit(weights=HOLE**2), V, "`weights`", "finite and >= 0"),
    ("weights zero", lambda: fit(weights=0 * Y), V, "`weights`", "0 for every sample"),
    ("weights a string", lambda: fit(weights="all"), T, "`weights`", "real numbers"),
    ("weights complex", lambda: fit(weights=1j * Y), T, "`weights`", "real numbers"),
    ("callback a string", lambda: fit(callback="print"), T, "`callback`", "function of a Progress"),
    ("resume alone", lambda: fit(resume=True), V, "`resume` needs `checkpoint`", "file to go on"),
    ("checkpoint a number", lambda: fit(checkpoint=3), T, "`checkpoint`", "path"),
    ("checkpoint a folder", lambda: fit(checkpoint=FOLDER), V, "`checkpoint`", "another name"),
    ("LogSpectral", lambda: fit(dt=None, ts=IRREGULAR, loss=l.LogSpectral()), V, "`loss`", "use T"),
    ("segments", lambda: fit(loss=l.MultipleShooting(60)), V, "`segments`", "fewer"),
    ("an oscillator of 3", lambda: fit(units=4, init=i.FromOscillator(MODEL)), V, "`units`", "3"),
    ("an oscillator of 3 channels", lambda: fit(init=i.FromOscillator(MODEL)), V, "`signal`", "3"),
]
LOSSES = [
    ("Scaled", "factor negative", lambda: -1 * l.Trajectory(), V, "`factor`", ">= 0"),
    ("Scaled", "factor a string", lambda: "2" * l.Trajectory(), T, "`factor`", "real number"),
    ("Scaled", "loss a number", lambda: l.Scaled(1.0, 2.0), T, "`loss`", r"Trajectory\(\)"),
    ("Sum", "of a number", lambda: l.Trajectory() + 1, T, "Trajectory", ""),
    ("MultiHorizon", "none", lambda: l.MultiHorizon(()), V, "`horizons`", "at least one"),
    ("MultiHorizon", "zero", lambda: l.MultiHorizon((0.0, 1.0)), V, "`horizons`", "> 0"),
    ("MultiHorizon", "beyond", lambda: l.MultiHorizon((1.5,)), V, "`horizons`", r"in \(0, 1\]"),
    ("MultiHorizon", "a number", lambda: l.MultiHorizon(0.5), T, "`horizons`", "fractions"),
    ("MultipleShooting", "one", lambda: l.MultipleShooting(1), V, "`segments`", "integer >= 2"),
    ("MultipleShooting", "float", lambda: l.MultipleShooting(4.0), V, "`segments`", ">= 2"),
    ("MultipleShooting", "loose", lambda: l.MultipleShooting(4, 0.0), V, "`continuity`", "> 0"),
    ("LogSpectral", "floor", lambda: l.LogSpectral(0.0), V, "`floor`", "> 0"),
    ("Frequency", "zero", lambda: l.Frequency([1.0, 0.0]), V, "`omega`", "> 0"),
    ("Frequency", "NaN", lambda: l.Frequency([NAN]), V, "`omega`", "finite"),
    ("Frequency", "a number", lambda: l.Frequency(1.0), T, "`omega`", "frequencies"),
    ("Frequency", "none", lambda: l.Frequency([]), V, "`omega`", "at least one"),
    ("Frequency", "count", lambda: l.Frequency(count=0), V, "`count`", "integer >= 1"),
    ("Energy", "negative", lambda: l.Energy(-1.0), V, "`energy`", "> 0"),
    ("Energy", "a string", lambda: l.Energy("low"), T, "`energy`", "number"),
    ("Huber", "a string", lambda: l.Huber("mse"), T, "`delta`", "number"),
    ("Huber", "delta", lambda: l.Huber(delta=INF), V, "`delta`", "finite"),
]
FF = i.FrequenciesFirst
INITIALISERS = [
    ("FrequenciesFirst", "energy zero", lambda: FF(energy=(0, 1)), V, "`energy`", "0 < least"),
    ("FrequenciesFirst", "reversed", lambda: FF(energy=(2, 1)), V, "`energy`", "<= largest"),
    ("FrequenciesFirst", "energy one", lambda: FF(energy=1.0), T, "`energy`", "0 < least"),
    ("FrequenciesFirst", "energy huge", lambda: FF(energy=(1, 99)), V, "`energy`", "<= 50"),
    ("FrequenciesFirst", "omega zero", lambda: FF(omega=[0]), V, "`omega`", "> 0"),
    ("FrequenciesFirst", "omega none", lambda: FF(omega=[]), V, "`omega`", "> 0"),
    ("FrequenciesFirst", "omega a string", lambda: FF(omega="1"), T, "`omega`", "real numbers"),
    ("FrequenciesFirst", "coupling", lambda: FF(coupling=-1.0), V, "`coupling`", ">= 0"),
    ("FrequenciesFirst", "coupling text", lambda: FF(coupling="1"), T, "`coupling`", "real number"),
    ("FrequenciesFirst", "ReLU", lambda: FF(activation=jd.ReLU()), V, "`activation`", "Tanh"),
    ("FrequenciesFirst", "a class", lambda: FF(activation=jd.Tanh), T, "`activation`", "Tanh"),
    ("FrequenciesFirst", "operator", lambda: FF(operator=CELL.operator), T, "`operator`", "class"),
    ("Random", "scale zero", lambda: i.Random(scale=0.0), V, "`scale`", "> 0"),
    ("Random", "scale a string", lambda: i.Random(scale="1"), T, "`scale`", "real number"),
    ("Random", "amplitude", lambda: i.Random(amplitude=NAN), V, "`amplitude`", "finite"),
    ("Random", "amplitude None", lambda: i.Random(amplitude=None), T, "`amplitude`", "real number"),
    ("Random", "operator", lambda: i.Random(operator="dense"), T, "`operator`", "class"),
    ("FromOscillator", "a cell", lambda: i.FromOscillator(CELL), T, "`oscillator`", "Oscillator"),
    ("FromOscillator", "spread", lambda: i.FromOscillator(MODEL, spread=-1), V, "`spread`", ">= 0"),
    (
        "FromOscillator",
        "text",
        lambda: i.FromOscillator(MODEL, spread="1"),
        T,
        "`spread`",
        "real number",
    ),
]
OSCILLATORS = [
    ("cell a class", lambda: osc(cell=jd.PoissonCell), T, "`cell`", "jaxdyn.PoissonCell"),
    ("cell driven", lambda: osc(cell=DRIVEN), V, "`cell`", "without input_matrix"),
    ("x0 None", lambda: osc(None), T, "`x0`", "real number"),
    ("x0 a string", lambda: osc("abc"), T, "`x0`", "real number"),
    ("x0 too short", lambda: osc(X[:2]), V, "`x0`", r"shape \(3,\)"),
    ("x0 NaN", lambda: osc(X * NAN), V, "`x0`", "finite"),
    ("x0 complex", lambda: osc(X + 1j), T, "`x0`", "real number"),
    ("readout a matrix", lambda: osc(readout=np.eye(3)), T, "`readout`", "jaxdyn.Readout"),
    ("readout of 2", lambda: osc(readout=jd.Readout(np.eye(2))), V, "`readout`", "cell has 3"),
    ("t0 a string", lambda: osc(t0="now"), T, "`t0`", "real number"),
    ("t0 NaN", lambda: osc(t0=NAN), V, "`t0`", "finite"),
    ("step zero", lambda: osc(step=0.0), V, "`step`", "> 0"),
    ("step a string", lambda: osc(step="small"), T, "`step`", "real number"),
    ("channels too few", lambda: osc(channels=("a",)), V, "`channels`", "3 names"),
    ("ts decreasing", lambda: MODEL([2.0, 1.0]), V, "`ts`", "increase"),
    ("ts NaN", lambda: MODEL([0.0, NAN]), V, "`ts`", "finite"),
    ("ts a number", lambda: MODEL(1.0), V, "`ts`", r"shape \(t,\)"),
    ("ts a string", lambda: MODEL("now"), T, "`ts`", "times"),
    ("ts none", lambda: MODEL([]), V, "`ts`", r"shape \(t,\)"),
    ("solver a string", lambda: MODEL([1.0], solver="rk4"), T, "`solver`", "such as"),
    ("generate backwards", lambda: MODEL.generate(-1.0, 0.1), V, "`t1`", "after 0"),
    ("generate no step", lambda: MODEL.generate(1.0, 0.0), V, "`dt`", "> 0"),
    ("generate text", lambda: MODEL.generate(1.0, "0.1"), T, "`dt`", "real number"),
    ("no shell", MODEL.multiplier, V, "`cell`", "shell="),
    ("at no energy", lambda: MODEL.at_energy(0.0), V, "`energy`", "> 0"),
    ("at energy text", lambda: MODEL.at_energy("1"), T, "`energy`", "real number"),
    ("at energy of rest", lambda: osc(0 * X).at_energy(1.0), V, "`energy`", "multiple of x0"),
    ("frequencies of none", lambda: MODEL.frequencies(0), V, "`count`", ">= 1"),
    ("load nothing", lambda: jd.Oscillator.load("/nonexistent"), "OSError", "/nonexistent", "No"),
    ("save nowhere", lambda: MODEL.save("/nonexistent/m"), "OSError", "/nonexistent/m", "No"),
]
READOUTS = [
    ("matrix a vector", lambda: jd.Readout(X), V, "`matrix`", r"shape \(m, n\)"),
    ("matrix a string", lambda: jd.Readout("C"), T, "`matrix`", "real number"),
    ("matrix ragged", lambda: jd.Readout([[1.0], [1.0, 2.0]]), T, "`matrix`", "real number"),
    ("matrix NaN", lambda: jd.Readout([[NAN]]), V, "`matrix`", "finite"),
    ("matrix complex", lambda: jd.Readout([[1j]]), T, "`matrix`", "real number"),
    ("offset too long", lambda: jd.Readout([[1.0]], X), V, "`offset`", "one number per row"),
    ("offset infinite", lambda: jd.Readout([[1.0]], [INF]), V, "`offset`", "finite"),
]
CASES = [
    *(Case("fit", *case) for case in SIGNALS + NUMBERS),
    *(Case(*case) for case in LOSSES + INITIALISERS),
    *(Case("Oscillator", *case) for case in OSCILLATORS),
    *(Case("Readout", *case) for case in READOUTS),
]


def report() -> dict[str, Any]:
    outcomes = {}
    for case in CASES:
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
    command = [sys.executable, str(Path(__file__))]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refused(outcomes, case):
    outcome = outcomes[case.id]
    assert "message" in outcome, f"returned {outcome['returned']}"
    message = outcome["message"]
    assert case.error in outcome["kinds"], (outcome["kinds"], message)
    assert re.search(case.argument, message, re.DOTALL), message
    assert re.search(case.cure, message, re.DOTALL), message
    assert not outcome["warnings"]


if __name__ == "__main__":
    print(json.dumps(report()))
