"""torchdiffeq: batch in the state, no autograd; the state (b, n) or (n, b), and one thread or one
for each core, whichever evaluates the field fastest on the problem.

`rk4` is its fixed-step method of order 4 (the 3/8 rule); `dopri5` takes one step size for the
batch, its error norm taken over all of it.
"""

import itertools
import os
import time

from . import Problem, Solve, without


def missing() -> str | None:
    return without("torch", "torchdiffeq")


def rk4(problem: Problem, steps: int) -> Solve:
    return _solve(problem, method="rk4", options={"step_size": problem.t1 / steps})


def dopri5(problem: Problem, tol: float) -> Solve:
    return _solve(problem, method="dopri5", rtol=tol, atol=tol)


def _solve(problem: Problem, **how) -> Solve:
    import torch
    from torchdiffeq import odeint

    W, x0 = torch.tensor(problem.W), torch.tensor(problem.x0)
    times = torch.tensor([0.0, problem.t1], dtype=x0.dtype)
    # (field, initial states) with the batch in the major and in the minor axis.
    layouts = {
        "major": (lambda t, x: torch.tanh(x) @ W.T, x0),
        "minor": (lambda t, x: W @ torch.tanh(x), x0.T.contiguous()),
    }

    def seconds(choice):
        layout, threads = choice
        field, x = layouts[layout]
        torch.set_num_threads(threads)
        rounds = []
        for _ in range(10):
            start = time.perf_counter()
            field(0.0, x)
            rounds.append(time.perf_counter() - start)
        return sorted(rounds)[5]

    choices = itertools.product(layouts, {1, len(os.sched_getaffinity(0))})
    layout, threads = min(choices, key=seconds)
    field, x = layouts[layout]

    def solve():
        torch.set_num_threads(threads)
        with torch.no_grad():
            end = odeint(field, x, times, **how)[-1]
        return (end if layout == "major" else end.T).numpy()

    return solve
