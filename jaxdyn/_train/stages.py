"""A fit as a sequence of rounds, each of which can be written down and taken up again."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .result import History
from .training import Task, begin_descent, dealt, descend, judge, polish

DESCENT, POLISH, REFIT = "descent", "polish", "refit"
# Steps of a round: what is lost when a fit is killed, and how often the bar moves.
DESCENT_ROUND, POLISH_ROUND = 50, 5
# A stage ends when no score has fallen by this part within `patience` rounds.
GAIN = 0.01


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of a stage. `optimiser` None means Levenberg-Marquardt."""

    stage: str
    steps: int
    optimiser: Any = None
    horizon: float = 1.0
    patience: int = 2
    tolerance: float = 0.0

    @property
    def rounds(self) -> int:
        per_round = POLISH_ROUND if self.optimiser is None else DESCENT_ROUND
        return math.ceil(self.steps / per_round)

    def horizons(self, done: int) -> np.ndarray:
        """The fraction of the window that each step of round `done` sees: from `horizon` to all
        of it in the first half of the stage."""
        steps = np.arange(done * DESCENT_ROUND, min((done + 1) * DESCENT_ROUND, self.steps))
        grown = np.minimum(1.0, 2 * steps / max(self.steps, 1))
        return self.horizon + (1 - self.horizon) * grown


class State(eqx.Module):
    """All that a stage needs to go on: arrays that lead with the restarts, and counters.

    `memory` is the optimiser's own state or the step sizes of Levenberg-Marquardt. `best` are the
    parameters with the lowest score so far, found in round `best_round`. `mark` is what the best
    scores were when one last gained enough, `stale` rounds ago. `over` is set when a callback has
    ended the stage.
    """

    params: Any
    memory: Any
    best: Any
    best_loss: np.ndarray
    best_score: np.ndarray
    best_round: np.ndarray
    done: np.ndarray
    mark: np.ndarray
    stale: np.ndarray
    over: np.ndarray


def begin(task: Task, plan: Plan, params: Any, mesh: Mesh | None) -> State:
    loss, score = (np.asarray(v) for v in dealt(judge, task, mesh, params))
    count = len(score)
    if plan.optimiser is None:
        memory = jnp.ones(count)
    else:
        memory = begin_descent(plan.optimiser, params)
    zero = np.zeros((), np.int64)
    return State(
        params=params,
        memory=memory,
        best=params,
        best_loss=loss,
        best_score=score,
        best_round=np.zeros(count, np.int64),
        done=zero,
        mark=score,
        stale=zero,
        over=zero,
    )


def advance(
    task: Task, plan: Plan, state: State, mesh: Mesh | None
) -> tuple[State, np.ndarray, np.ndarray, int]:
    """One round: the next state, the losses and the scores, and the steps of the stage so far."""
    done = int(state.done)
    growing = False
    if plan.optimiser is None:
        steps = min(POLISH_ROUND, plan.steps - done * POLISH_ROUND)

        def program(task: Task, params: Any, memory: Any) -> Any:
            return polish(task, params, memory, steps)

        taken = done * POLISH_ROUND + steps
    else:
        horizons = plan.horizons(done)

        def program(task: Task, params: Any, memory: Any) -> Any:
            return descend(task, plan.optimiser, params, memory, jnp.asarray(horizons))

        taken = done * DESCENT_ROUND + len(horizons)
        # Rounds that see a part of the window may be worse at the whole: they are not stale.
        growing = bool(horizons[-1] < 1)
    params, memory, judged = dealt(program, task, mesh, state.params, state.memory)
    loss, score = (np.asarray(v) for v in judged)
    better = score < state.best_score
    best_score = np.where(better, score, state.best_score)
    fresh = growing or bool(np.any(best_score < (1 - GAIN) * state.mark))
    best = jax.tree.map(
        lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
        params,
        state.best,
    )
    new = State(
        params=params,
        memory=memory,
        best=best,
        best_loss=np.where(better, loss, state.best_loss),
        best_score=best_score,
        best_round=np.where(better, done + 1, state.best_round),
        done=np.asarray(done + 1),
        mark=best_score if fresh else state.mark,
        stale=np.asarray(0 if fresh else int(state.stale) + 1),
        over=state.over,
    )
    return new, loss, score, taken


def is_over(plan: Plan, state: State) -> bool:
    return (
        int(state.done) >= plan.rounds
        or bool(state.over)
        or int(state.stale) >= plan.patience
        or bool(np.any(state.best_score <= plan.tolerance))
    )


@dataclasses.dataclass
class Record:
    """History as it is written, one row a round."""

    restarts: int
    stages: list[str] = dataclasses.field(default_factory=list)
    iterations: list[int] = dataclasses.field(default_factory=list)
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    scores: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(
        self, stage: str, iteration: int, members: np.ndarray, loss: np.ndarray, score: np.ndarray
    ) -> None:
        row = np.full((2, self.restarts), np.nan)
        row[:, members] = loss, score
        self.stages.append(stage)
        self.iterations.append(iteration)
        self.losses.append(row[0])
        self.scores.append(row[1])

    def history(self) -> History:
        shape = len(self.stages), self.restarts
        return History(
            tuple(self.stages),
            np.asarray(self.iterations, np.int64),
            np.reshape(self.losses, shape),
            np.reshape(self.scores, shape),
        )


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told after every round.

    `stage`, "descent", "polish" or "refit"; `iteration`, steps of it so far, of at most `steps`;
    `scores` (restarts,), the lowest score of each restart so far, what the loss makes of the
    standardised validation part; `best`, the restart with the lowest.
    """

    stage: str
    iteration: int
    steps: int
    scores: np.ndarray
    best: int


class Bar:
    """A bar for each stage, with the best score so far and the restart that has it."""

    def __init__(self):
        self.bar: Any = None
        self.stage = ""

    def show(self, progress: Progress) -> None:
        from tqdm import tqdm

        if progress.stage != self.stage:
            self.close()
            self.stage = progress.stage
            self.bar = tqdm(total=progress.steps, desc=progress.stage, unit="step", leave=True)
        self.bar.update(progress.iteration - self.bar.n)
        score = progress.scores[progress.best]
        self.bar.set_postfix_str(f"loss {score:.2e}, best restart {progress.best}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


Callback = Callable[[Progress], Any]


def take(stacked: Any, members: np.ndarray) -> Any:
    """Some members of a stack."""
    return jax.tree.map(lambda a: a[members], stacked)
