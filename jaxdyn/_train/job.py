"""The course of a fit: starts, stages, the choice of a restart, and the refit on all the data."""

import dataclasses
import functools
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from .._fingerprint import fingerprint
from .._solver import AbstractCellSolver
from .checkpoint import Checkpoint
from .initialisers import AbstractInitialiser
from .losses import AbstractLoss
from .oscillator import (
    Oscillator,
    default_solver,
    default_step,
    longest_step,
    spectral_norm,
)
from .result import Outcome
from .rollout import Scaling, Settings, windows
from .signals import Signal
from .stages import (
    DESCENT,
    POLISH,
    POLISH_ROUND,
    REFIT,
    Bar,
    Callback,
    Plan,
    Progress,
    Record,
    State,
    advance,
    begin,
    is_over,
    take,
)
from .training import Task, dealt, finish, judge, start, trajectory_errors

# The step of training, |W|_2 h: Taylor's series of order 8 is then at 1e-9 of an orbit of order 1,
# RK4 at 1e-7.
ORDER, TRAINING_STEPS = 8, (0.3, 0.08)
# A step may become so many times longer in training, as |W|_2 grows, before the user is told.
LONGER = 2.0
# Residuals x parameters^2 is the work of a step of Levenberg-Marquardt, about a second for 2e8: of
# one restart at most, of all restarts in one step, and of all steps.
LARGEST_POLISH, POLISH_AT_ONCE, POLISH_IN_ALL = 5e8, 1e8, 2e9
POLISH_STEPS, DESCENT_STEPS = (20, 200), 2000
LEARNING_RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Request:
    """The checked arguments of `fit`."""

    signal: Signal
    units: int
    restarts: int
    key: Array
    init: AbstractInitialiser
    loss: AbstractLoss
    weights: np.ndarray | None
    shell: float | None
    steps: int | None
    optimiser: Any
    horizon: float
    polish: int | None
    fitted: int
    trained: int
    patience: int
    tolerance: float
    project: bool
    ridge: float
    solver: AbstractCellSolver | None
    progress: bool
    callback: Callback | None
    checkpoint: str | Path | None
    resume: bool
    mesh: Mesh | None

    def identity(self) -> str:
        """A digest of all that the result depends on."""
        from .. import __version__

        numbers = [
            getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name
            not in (
                "signal",
                "key",
                "optimiser",
                "progress",
                "callback",
                "checkpoint",
                "resume",
                "mesh",
            )
        ]
        # Restarts that are shared have other last digits, whatever the number of devices.
        numbers.append(self.mesh is None)
        signal = self.signal.values, self.signal.ts, self.signal.mask
        key = jax.random.key_data(self.key)
        return fingerprint(signal, key, numbers, (__version__, jax.__version__))


@dataclasses.dataclass
class Kept:
    """The best parameters of every restart so far, and what is known of them."""

    params: Any
    loss: np.ndarray
    score: np.ndarray
    rounds: np.ndarray

    @property
    def parts(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        return self.params, self.loss, self.score, self.rounds

    def update(self, members: np.ndarray, state: State) -> None:
        self.params = jax.tree.map(
            lambda all_, some: all_.at[members].set(some), self.params, state.best
        )
        for mine, theirs in (
            (self.loss, state.best_loss),
            (self.score, state.best_score),
            (self.rounds, state.best_round),
        ):
            mine[members] = theirs


class Job:
    """One fit. To be run with x64 on."""

    def __init__(self, request: Request):
        self.request = request
        self.fitted = request.signal.window(0, request.fitted)
        self.scaling = Scaling.of(self.fitted)
        self.record = Record(request.restarts)
        self.bar = Bar() if request.progress else None
        self.checkpoint = Checkpoint(request.checkpoint, request.identity())

    def run(self) -> Outcome:
        try:
            return self._run()
        finally:
            if self.bar is not None:
                self.bar.close()

    def _run(self) -> Outcome:
        request = self.request
        saved = self._saved()
        task, models = self._task(request.trained)
        plans = self._plans(task)
        params = start(task, models)
        loss, score = (np.array(v) for v in dealt(judge, task, request.mesh, params))
        kept = Kept(params, loss, score, np.zeros(request.restarts, np.int64))
        if saved is not None:
            self.record = saved.record
            kept = Kept(*saved.restored(kept.parts))
        for index, plan in enumerate(plans):
            if saved is not None and saved.stage > index:
                continue
            members = self._members(plan, task, kept.score)
            first = take(kept.params, members)
            kept.update(members, self._stage(index, plan, task, members, first, kept, saved))
            saved = None
        if not np.any(np.isfinite(kept.score)):
            raise RuntimeError(
                "every restart diverged; scale the signal, give init=... with smaller energies, or "
                "a smaller learning rate."
            )
        best = int(np.argmin(kept.score))
        losses = np.asarray(trajectory_errors(task, kept.params, jnp.asarray(self.scaling.scale)))
        losses = np.where(np.isfinite(losses), losses, np.inf)
        chosen = take(kept.params, np.array([best]))
        if request.trained < request.fitted:
            task, chosen = self._refitted(task, plans, kept, best, chosen, saved)
        model = _first(finish(task, chosen))
        self._check_step(task, model)
        readout = self.scaling.undo(model.readout)
        model = eqx.tree_at(lambda o: o.readout, model, readout)
        model = dataclasses.replace(model, step=default_step(model.cell))
        return Outcome(model, losses, best, self.record.history(), _count(model, readout=True))

    def _check_step(self, task: Task, model: Oscillator) -> None:
        """Says so when training has left the range in which its own steps are exact."""
        settings = task.settings
        step = float(jnp.max(task.full.gaps)) / settings.substeps * spectral_norm(model.cell)
        limit = longest_step(settings.solver, TRAINING_STEPS)
        if step > LONGER * limit:
            warnings.warn(
                f"the weights grew in training until a step was |W|_2 h = {step:.2g}, more than "
                f"the {limit:g} at which it is exact: `loss` and `metrics` are right, but the fit "
                "may be better from init=FromOscillator(...) of this one, or at a lower learning "
                "rate.",
                stacklevel=5,
            )

    def _refitted(
        self, task: Task, plans: list[Plan], kept: Kept, best: int, chosen: Any, saved: Any
    ) -> tuple[Task, Any]:
        """The task on all that is to be fitted, and the chosen restart in it.

        It is taken as it is, or started on all the data and polished for as many rounds as were
        best for it, whichever is nearer: the start then has the frequencies of all the data, and
        the number of rounds is what keeps it from fitting noise.
        """
        whole, models = self._task(self.request.fitted)
        candidates = [chosen]
        rounds = int(kept.rounds[best])
        polished = [plan for plan in plans if plan.stage == POLISH]
        if len(plans) == len(polished):
            member = np.array([best])
            anew = take(start(whole, models), member)
            plan = Plan(REFIT, rounds * POLISH_ROUND, patience=rounds + 1, tolerance=0.0)
            state = self._stage(len(plans), plan, whole, member, anew, kept, saved)
            candidates.append(state.best)
        errors = [float(judge(whole, c)[1][0]) for c in candidates]
        return whole, candidates[int(np.argmin(errors))]

    def _task(self, trained: int) -> tuple[Task, Oscillator]:
        """The task of fitting the first `trained` samples, and the models it starts from."""
        request = self.request
        training = self.fitted.window(0, trained)
        models = request.init(
            training,
            request.units,
            request.restarts,
            key=request.key,
            shell=request.shell,
        )
        fitted, weights = self.fitted, request.weights
        judged = slice(trained, None) if trained < fitted.n_samples else slice(None)
        (own,) = windows(training, self.scaling, [slice(None)], weights)
        full, judging = windows(fitted, self.scaling, [slice(trained), judged], weights)
        settings = self._settings(models, float(jnp.max(full.gaps)))
        apply = self.scaling.apply
        models = [eqx.tree_at(lambda o: o.readout, m, apply(m.readout)) for m in models]
        task = Task(
            static=models[0],
            loss=request.loss.prepared(training),
            settings=settings,
            training=own,
            full=full,
            judging=judging.weights,
        )
        arrays = [eqx.filter(m, eqx.is_array) for m in models]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
        static = eqx.filter(models[0], eqx.is_array, inverse=True)
        return task, eqx.combine(stacked, static)

    def _settings(self, models: list[Oscillator], gap: float) -> Settings:
        request = self.request
        solver = request.solver
        if solver is None:
            solver = default_solver(models[0].cell, ORDER)
        else:
            solver.check(models[0].cell)
        norm = max(spectral_norm(m.cell) for m in models)
        substeps = max(1, int(np.ceil(gap * norm / longest_step(solver, TRAINING_STEPS))))
        return Settings(solver, substeps, request.project, request.ridge)

    def _plans(self, task: Task) -> list[Plan]:
        """Descent, polishing, or both."""
        request = self.request
        work = self._work(task)
        steps, polish = request.steps, request.polish
        if polish is None:
            allowed = 0 if work > LARGEST_POLISH else POLISH_IN_ALL / (self._at_once(work) * work)
            polish = int(np.clip(allowed, *POLISH_STEPS)) if allowed else 0
        polish = -(-polish // POLISH_ROUND) * POLISH_ROUND
        if steps is None:
            steps = 0 if polish else DESCENT_STEPS
        plans, stop = [], (request.patience, request.tolerance)
        if steps:
            optimiser = request.optimiser
            if optimiser is None:
                optimiser = _adam(steps)
            plans.append(Plan(DESCENT, steps, optimiser, request.horizon, *stop))
        if polish:
            plans.append(Plan(POLISH, polish, None, 1.0, *stop))
        return plans

    def _work(self, task: Task) -> float:
        residuals = task.training.targets.size
        return float(residuals) * _count(task.static, readout=not self.request.project) ** 2

    def _at_once(self, work: float) -> int:
        return int(np.clip(POLISH_AT_ONCE // work, 1, self.request.restarts))

    def _members(self, plan: Plan, task: Task, score: np.ndarray) -> np.ndarray:
        """All restarts, or as many of the best as can be polished at once."""
        count = len(score)
        if plan.stage == POLISH:
            count = self._at_once(self._work(task))
        return np.sort(np.argsort(score, kind="stable")[:count])

    def _saved(self) -> Any:
        request = self.request
        if request.checkpoint is None:
            return None
        if not request.resume and Path(request.checkpoint).exists():
            raise ValueError(
                f"`checkpoint` {request.checkpoint} exists; pass resume=True to go on from it, "
                "delete it, or give another name."
            )
        return self.checkpoint.read()

    def _stage(
        self,
        index: int,
        plan: Plan,
        task: Task,
        members: np.ndarray,
        params: Any,
        kept: Kept,
        saved: Any,
    ) -> State:
        """All rounds of a stage, from `params` or from where a checkpoint left it."""
        if saved is not None:
            members = saved.members
        mesh = self.request.mesh
        state = begin(task, plan, params, mesh)
        if saved is not None:
            state = saved.restored(state)
        while not is_over(plan, state):
            state, loss, score, taken = advance(task, plan, state, mesh)
            self.record.add(plan.stage, taken, members, loss, score)
            self.checkpoint.write(index, members, self.record, kept.parts, state)
            if self._told(plan, taken, members, kept, state):
                state = eqx.tree_at(lambda s: s.over, state, np.ones_like(state.over))
                self.checkpoint.write(index, members, self.record, kept.parts, state)
        return state

    def _told(self, plan: Plan, taken: int, members: np.ndarray, kept: Kept, state: State) -> bool:
        """Moves the bar and tells the callback; whether it wants the stage to end."""
        scores = kept.score.copy()
        scores[members] = state.best_score
        best = int(members[0]) if plan.stage == REFIT else int(np.argmin(scores))
        progress = Progress(plan.stage, taken, plan.steps, scores, best)
        if self.bar is not None:
            self.bar.show(progress)
        return self.request.callback is not None and bool(self.request.callback(progress))


@functools.cache
def _adam(steps: int) -> Any:
    """One for each number of steps: optax's are functions, and a new one compiles anew."""
    import optax

    return optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))


def _first(stacked: Oscillator) -> Oscillator:
    return jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, stacked)


def _count(model: Oscillator, *, readout: bool) -> int:
    """How many numbers a model has, with or without those of its readout."""
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    total = sum(leaf.size for leaf in leaves)
    own = sum(leaf.size for leaf in jax.tree.leaves(model.readout))
    return total if readout else total - own
