"""The compiled parts of a fit: many restarts at once through gradient descent or polishing."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from .._cell import EnergyShell, PoissonCell
from .losses import AbstractLoss
from .oscillator import Oscillator
from .rollout import Run, Settings, Window, run


class Task(eqx.Module):
    """What is being fitted: one structure of oscillator, a loss, and windows to train and judge on.

    `training` is the window that the loss sees. `full` goes on to the end of the validation part,
    with the weights of the training part, and `judging` (t, m) are the weights of the samples that
    a restart is judged by.
    """

    static: Oscillator
    loss: AbstractLoss
    settings: Settings = eqx.field(static=True)
    training: Window
    full: Window
    judging: Float[Array, "t m"]

    def model(self, params: Any) -> Oscillator:
        """The oscillator of unconstrained parameters."""
        return _positive(eqx.combine(params[0], self.static))

    def params(self, model: Oscillator) -> Any:
        """Unconstrained parameters of an oscillator, and the loss's own variables."""
        if not self.settings.project:
            # The least-squares readout is where its training starts.
            projecting = dataclasses.replace(self.settings, project=True)
            found = run(model, self.training, projecting).readout
            model = eqx.tree_at(lambda o: o.readout, model, found)
        trained = _trained(_unconstrained(model), self.settings.project)
        return trained, self.loss.variables(run(model, self.training, self.settings))

    def run(self, params: Any) -> Run:
        return run(self.model(params), self.training, self.settings)

    def residuals(self, params: Any) -> Float[Array, " r"]:
        return self.loss.residuals(self.run(params), params[1])

    def value(self, params: Any, horizon: Float[Array, ""]) -> Float[Array, ""]:
        """The loss of the first part of the window, the fraction `horizon` of its duration."""
        window = self.training
        within = window.times <= horizon * window.times[-1] * (1 + 1e-9)
        weights = jnp.where(within[:, None], window.weights, 0.0)
        # Where nothing was measured so early there is nothing to learn yet.
        total = jnp.sum(weights)
        weights = weights / jnp.where(total > 0, total, 1.0)
        window = eqx.tree_at(lambda w: w.weights, window, weights)
        seen = run(self.model(params), window, self.settings)
        return jnp.sum(self.loss.residuals(seen, params[1]) ** 2)

    def judged(self, params: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss on the training window, and the score by the judging samples."""
        seen = run(self.model(params), self.full, self.settings)
        score = self.loss.judge(eqx.tree_at(lambda r: r.window.weights, seen, self.judging))
        loss = jnp.sum(self.residuals(params) ** 2)
        return _or_infinite(loss), _or_infinite(score)

    def finished(self, params: Any) -> Oscillator:
        """The oscillator with its readout, of the standardised signal."""
        model = self.model(params)
        return eqx.tree_at(lambda o: o.readout, model, self.run(params).readout)


def dealt(program: Callable, task: Task, mesh: Mesh | None, *stacked: Any) -> Any:
    """`program(task, *stacked)` of restarts, dealt out to the devices of a mesh if there is one.

    On CPUs one by one, so that the number of devices changes nothing. Not by `jax.shard_map`, in
    which lineax refuses to solve.
    """
    if mesh is None:
        return program(task, *stacked)
    devices = list(mesh.devices.flat)
    count = jax.tree.leaves(stacked)[0].shape[0]
    on_cpu = all(device.platform == "cpu" for device in devices)
    size = 1 if on_cpu else -(-count // len(devices))
    arrays, static = eqx.partition(task, eqx.is_array)
    placed = [eqx.combine(jax.device_put(arrays, device), static) for device in devices]
    outs = []
    for number, first in enumerate(range(0, count, size)):
        here = number % len(devices)
        part = jax.tree.map(lambda a, first=first: np.asarray(a[first : first + size]), stacked)
        outs.append(program(placed[here], *jax.device_put(part, devices[here])))
    # Nothing has been waited for so far: the devices work side by side.
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *outs)


@eqx.filter_jit
def start(task: Task, models: Oscillator) -> Any:
    """The parameters of a stack of oscillators."""
    dynamic, static = eqx.partition(models, eqx.is_array)
    return jax.vmap(lambda d: task.params(eqx.combine(d, static)))(dynamic)


@eqx.filter_jit
def judge(task: Task, params: Any) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    return jax.vmap(task.judged)(params)


@eqx.filter_jit
def finish(task: Task, params: Any) -> Oscillator:
    """A stack of oscillators, with only the arrays stacked."""
    arrays = jax.vmap(lambda p: eqx.filter(task.finished(p), eqx.is_array))(params)
    return eqx.combine(arrays, eqx.filter(task.static, eqx.is_array, inverse=True))


@eqx.filter_jit
def begin_descent(optimiser: Any, params: Any) -> Any:
    return jax.vmap(optimiser.init)(params)


@eqx.filter_jit
def descend(
    task: Task,
    optimiser: Any,
    params: Any,
    state: Any,
    horizons: Float[Array, " s"],
) -> tuple[Any, Any, tuple[Float[Array, " r"], Float[Array, " r"]]]:
    """One step of the optimiser for each of `horizons`, for all restarts; then their judgement."""
    import optax

    # Line searches want the value and the function as well; others leave them alone.
    optimiser = optax.with_extra_args_support(optimiser)

    def one(params, state):
        def step(carry, horizon):
            params, state = carry
            value, gradient = jax.value_and_grad(task.value)(params, horizon)
            # One infinite gradient must not spoil a restart for good: such a step is left out.
            gradient, finite = finite_or_zero(gradient)
            # optax's schedules need it, whatever promotion the user has set.
            with jax.numpy_dtype_promotion("standard"):
                updates, new_state = optimiser.update(
                    gradient,
                    state,
                    params,
                    value=value,
                    grad=gradient,
                    value_fn=lambda p: task.value(p, horizon),
                )
                moved = optax.apply_updates(params, updates)
            return (_where(finite, moved, params), _where(finite, new_state, state)), None

        (params, state), _ = jax.lax.scan(step, (params, state), horizons)
        return params, state, task.judged(params)

    return jax.vmap(one)(params, state)


@eqx.filter_jit
def polish(
    task: Task, params: Any, step_size: Float[Array, " r"], steps: int
) -> tuple[Any, Float[Array, " r"], tuple[Float[Array, " r"], Float[Array, " r"]]]:
    """`steps` steps of Levenberg-Marquardt, for all restarts; then their judgement.

    `step_size` is the reciprocal of the damping, which a round hands on to the next.
    """
    method = optx.LevenbergMarquardt(rtol=0.0, atol=0.0, linear_solver=lx.QR())

    def residuals(params, _):
        r = task.residuals(params)
        # What is infinite is rejected as a step that makes things worse.
        return jnp.where(jnp.isfinite(r), r, 1e100), None

    def one(params, size):
        out = jax.eval_shape(lambda: residuals(params, None))
        state = method.init(residuals, params, None, {}, *out, frozenset())
        state = eqx.tree_at(lambda s: s.search_state.step_size, state, size)
        dynamic, static = eqx.partition(state, eqx.is_array)

        def step(carry, _):
            params, dynamic = carry
            state = eqx.combine(dynamic, static)
            params, state, _ = method.step(residuals, params, None, {}, state, frozenset())
            return (params, eqx.filter(state, eqx.is_array)), None

        # The first step only evaluates where it is.
        (params, dynamic), _ = jax.lax.scan(step, (params, dynamic), None, length=steps + 1)
        size = eqx.combine(dynamic, static).search_state.step_size
        return params, size, task.judged(params)

    return jax.vmap(one)(params, step_size)


@eqx.filter_jit
def trajectory_errors(task: Task, params: Any, scale: Float[Array, " m"]) -> Float[Array, " r"]:
    """The mean squared error of each restart over the training window, in units of the data."""

    def one(p):
        seen = task.run(p)
        return jnp.sum(seen.weights * ((seen.outputs - seen.targets) * scale[None]) ** 2)

    return jax.vmap(one)(params)


def finite_or_zero(gradient: Any) -> tuple[Any, Bool[Array, ""]]:
    """The gradient, 0 if a part of it is not finite, and whether it was finite."""
    finite = functools.reduce(
        jnp.logical_and, (jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))
    )
    return jax.tree.map(lambda g: jnp.where(finite, g, 0.0), gradient), finite


def _or_infinite(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _where(condition: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _trained(model: Oscillator, project: bool) -> Oscillator:
    """The arrays that are trained; without the readout where that is eliminated."""
    arrays = eqx.filter(model, eqx.is_inexact_array)
    keep = _fixed(arrays)
    if project:
        keep = eqx.tree_at(lambda o: o.readout, keep, replace=None, is_leaf=lambda x: x is None)
    return keep


def _fixed(arrays: Oscillator) -> Oscillator:
    """Without what is no parameter: the rows that an energy shell leaves alone."""
    cell = arrays.cell
    if isinstance(cell, PoissonCell) and cell.regulator is not None:
        if cell.regulator.keep is not None:
            arrays = eqx.tree_at(lambda o: o.cell.regulator.keep, arrays, None)
    return arrays


def _unconstrained(model: Oscillator) -> Oscillator:
    return _shell(model, jnp.log)


def _positive(model: Oscillator) -> Oscillator:
    return _shell(model, jnp.exp)


def _shell(model: Oscillator, change: Any) -> Oscillator:
    """The energy and the rate of a shell are trained by their logarithms: both stay positive."""
    cell = model.cell
    if not (isinstance(cell, PoissonCell) and isinstance(cell.regulator, EnergyShell)):
        return model
    pair = change(cell.regulator.energy), change(cell.regulator.rate)
    return eqx.tree_at(lambda o: (o.cell.regulator.energy, o.cell.regulator.rate), model, pair)
