"""The arguments of `fit`, checked before anything is computed."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .._solver import AbstractCellSolver
from .initialisers import AbstractInitialiser, FrequenciesFirst
from .job import Request
from .losses import AbstractLoss, Trajectory
from .signals import Signal
from .signals.checks import real_array
from .tones import find_tones

FEWEST_PERIODS = 2.0
# Times that span more median gaps than this, and than ten for each sample, ask for more steps than
# there is room for.
MOST_GAPS = 100_000
# Tones weaker than this part of the strongest do not count as the signal's periods.
WEAK = 0.1


def checked_request(given: dict[str, Any]) -> Request:
    """The arguments of `fit` as a request.

    **Raises:** ValueError or TypeError that names the argument.
    """
    import optax

    signal = Signal.of(given["signal"], **_present(given, "dt", "ts", "mask"))
    for name, kind, cure in (
        ("init", AbstractInitialiser, "one of jaxdyn.initialisers, such as FrequenciesFirst()"),
        ("loss", AbstractLoss, "one of jaxdyn.losses, such as Trajectory()"),
        ("optimiser", optax.GradientTransformation, "one of optax's, such as optax.adam(1e-3)"),
        ("solver", AbstractCellSolver, "one of jaxdyn's, such as jaxdyn.RK4()"),
        ("mesh", Mesh, 'a jax.sharding.Mesh such as jax.make_mesh((2,), ("b",))'),
    ):
        if given[name] is not None and not isinstance(given[name], kind):
            raise TypeError(f"`{name}` must be {cure}, or None; got {given[name]!r}.")
    mesh = given["mesh"]
    if mesh is not None:
        if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
            raise ValueError(
                "`mesh` must have devices of this process only: a fit is that of one process."
            )
    units = _count("units", given["units"], 2)
    if signal.n_channels > units:
        raise ValueError(
            f"`units` must be at least the number of channels, {signal.n_channels}; got {units}."
        )
    restarts = _count("restarts", given["restarts"], 1)
    horizon = _number("horizon", given["horizon"], "a fraction in (0, 1]", 0, 1)
    ridge = _number("ridge", given["ridge"], "a small number > 0", 0, 1)
    shell = given["shell"]
    if shell is not None:
        shell = _number("shell", shell, "a rate > 0 and finite, or None", 0, np.inf)
    callback = given["callback"]
    if callback is not None and not callable(callback):
        raise TypeError(f"`callback` must be a function of a Progress, got {callback!r}.")
    if not isinstance(given["checkpoint"], str | Path | None):
        raise TypeError(f"`checkpoint` must be a path or None, got {given['checkpoint']!r}.")
    if given["resume"] and given["checkpoint"] is None:
        raise ValueError("`resume` needs `checkpoint`, the file to go on from.")
    fitted = signal.n_samples - _part("holdout", given["holdout"], signal.n_samples)
    trained = fitted - _part("validation", given["validation"], fitted)
    _check_length(signal, trained)
    weights = _weights(given["weights"], signal, trained)
    _check_parts(signal, weights, trained, fitted)
    return Request(
        signal=signal,
        units=units,
        restarts=restarts,
        key=_key(given["key"]),
        init=given["init"] or FrequenciesFirst(),
        loss=given["loss"] or Trajectory(),
        weights=weights,
        shell=shell,
        steps=_optional_count("steps", given["steps"]),
        optimiser=given["optimiser"],
        horizon=horizon,
        polish=_optional_count("polish", given["polish"]),
        fitted=fitted,
        trained=trained,
        patience=_count("patience", given["patience"], 1),
        tolerance=_number("tolerance", given["tolerance"], "a number in (0, 1]", 0, 1),
        project=bool(given["project"]) and not (given["loss"] or Trajectory()).robust,
        ridge=ridge,
        solver=given["solver"],
        progress=bool(given["progress"]),
        callback=callback,
        checkpoint=given["checkpoint"],
        resume=bool(given["resume"]),
        mesh=mesh,
    )


def _present(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if given[name] is not None}


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    return int(value)


def _optional_count(name: str, value: Any) -> int | None:
    return None if value is None else _count(name, value, 0)


def _number(name: str, value: Any, needs: str, above: float | int, most: float | int) -> float:
    try:
        if isinstance(value, str | bool):
            raise TypeError("no number")
        number = float(value)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be {needs}, got {value!r}.") from e
    if not (above < number <= most and math.isfinite(number)):
        raise ValueError(f"`{name}` must be {needs}, got {value!r}.")
    return number


def _part(name: str, value: Any, total: int) -> int:
    """A fraction of the samples, or their number, as a number of samples."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    ok = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not ok or not 0 <= value < (total if integer else 1):
        raise (ValueError if ok else TypeError)(
            f"`{name}` must be a fraction in [0, 1) or a number of samples below {total}, got "
            f"{value!r}."
        )
    return int(value) if integer else round(value * total)


def _key(key: Any) -> jax.Array:
    cure = "`key` must be a JAX random key, such as jax.random.key(0)"
    if not isinstance(key, jax.Array):
        raise TypeError(f"{cure}; got {key!r}.")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    raise TypeError(f"{cure}; got an array of {key.dtype}, shape {key.shape}.")


def _weights(weights: Any, signal: Signal, trained: int) -> np.ndarray | None:
    if weights is None:
        return None
    shape = signal.values.shape
    array = real_array("weights", weights).astype(np.float64)
    if array.shape not in (shape[:1], shape):
        raise ValueError(
            f"`weights` must have shape {shape[:1]} or {shape}, as the signal; got {array.shape}."
        )
    if not np.all(np.isfinite(array)) or np.any(array < 0):
        raise ValueError("`weights` must be finite and >= 0.")
    array = np.broadcast_to(array.reshape(len(array), -1), shape)
    if not np.any(array[:trained] * signal.mask[:trained]):
        raise ValueError("`weights` are 0 for every sample that would be trained on.")
    return array


def _check_parts(signal: Signal, weights: np.ndarray | None, trained: int, fitted: int) -> None:
    """Refuses parts in which nothing was measured: nothing can be judged there."""
    counts = signal.mask if weights is None else signal.mask * weights
    if trained < fitted and not np.any(counts[trained:fitted]):
        raise ValueError(
            f"`validation` leaves samples {trained} to {fitted - 1} to judge restarts by, of which "
            "none was measured or counts; give another part, or validation=0."
        )
    if fitted < signal.n_samples and not np.any(signal.mask[fitted:]):
        raise ValueError(
            f"`holdout` leaves samples {fitted} to {signal.n_samples - 1} to measure the forecast "
            "by, of which none was measured; give another part, or holdout=0."
        )


def _check_length(signal: Signal, trained: int) -> None:
    """Refuses what is too short or too constant to say what oscillates in it."""
    if trained < 8:
        raise ValueError(
            f"`signal` leaves {trained} samples to train on, which is too few: give at least 8, or "
            "a smaller `holdout` and `validation`."
        )
    gap = float(np.median(np.diff(signal.ts)))
    if signal.duration / gap > max(MOST_GAPS, 10 * signal.n_samples):
        longest = float(np.max(np.diff(signal.ts)))
        raise ValueError(
            f"`signal` has a gap of {longest:.3g}, {longest / gap:.3g} times the median gap: its "
            f"{signal.n_samples} samples are too few to say what happens in it. Fit the stretches "
            "before and after it apart, or thin out where samples are dense."
        )
    part = signal.window(0, trained)
    for name, values, mask in zip(part.channels, part.values.T, part.mask.T, strict=True):
        seen = values[mask]
        if seen.size < 2 or np.ptp(seen) == 0:
            raise ValueError(
                f"`signal`: channel {name!r} is constant or missing in the {trained} samples that "
                "would be trained on; drop it, or give smaller `holdout` and `validation`."
            )
    tones = find_tones(part, 4)
    size = np.linalg.norm(tones.amplitude / np.abs(tones.amplitude).max(0), axis=1)
    periods = tones.omega[size >= WEAK * size.max()].max() * part.duration / (2 * np.pi)
    if periods < FEWEST_PERIODS:
        raise ValueError(
            f"`signal` shows {periods:.2g} periods of its fastest tone in the {trained} samples "
            f"that would be trained on; give at least {FEWEST_PERIODS:g}, or smaller `holdout` and "
            "`validation`."
        )
