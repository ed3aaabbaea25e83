"""torchdiffeq: batch in the state, no autograd; the state (b, n) or (n, b), whichever evaluates
the field faster on the problem. On a GPU where torch finds one, the end states copied from there;
else on as many threads as there are cores, or on one, which loses less beside other loads.

`rk4` is its fixed-step method of order 4 (the 3/8 rule); `dopri5` takes one step size for the
batch, its error norm taken over all of it.
"""

import importlib
import time

from jaxdyn import Threads

from . import Problem, Solve, without


def missing() -> str | None:
    reason = without("torch", "torchdiffeq")
    if reason is None:
        # Loaded once JAX has started, torch on two threads takes ten times as long.
        importlib.import_module("torch")
    return reason


def rk4(problem: Problem, steps: int, threads: int | None = None) -> Solve:
    return _solve(problem, threads, method="rk4", options={"step_size": problem.t1 / steps})


def dopri5(problem: Problem, tol: float, threads: int | None = None) -> Solve:
    return _solve(problem, threads, method="dopri5", rtol=tol, atol=tol)


def _solve(problem: Problem, threads: int | None, **how) -> Solve:
    import torch
    from torchdiffeq import odeint

    device = "cuda" if torch.cuda.is_available() else "cpu"
    W, x0 = (torch.tensor(v, device=device) for v in (problem.W, problem.x0))
    times = torch.tensor([0.0, problem.t1], dtype=x0.dtype, device=device)
    threads = Threads().count() if threads is None else threads
    # (field, initial states) with the batch in the major and in the minor axis.
    layouts = {
        "major": (lambda t, x: torch.tanh(x) @ W.T, x0),
        "minor": (lambda t, x: W @ torch.tanh(x), x0.T.contiguous()),
    }

    def seconds(layout):
        field, x = layouts[layout]
        torch.set_num_threads(threads)
        rounds = []
        for _ in range(10):
            start = time.perf_counter()
            field(0.0, x)
            if device == "cuda":
                torch.cuda.synchronize()
            rounds.append(time.perf_counter() - start)
        return sorted(rounds)[5]

    layout = min(layouts, key=seconds)
    field, x = layouts[layout]

    def solve():
        torch.set_num_threads(threads)
        with torch.no_grad():
            end = odeint(field, x, times, **how)[-1]
        return (end if layout == "major" else end.T).cpu().numpy()

    return solve
