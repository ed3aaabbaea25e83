"""heyoka: Taylor integration in batches of the SIMD width, one integrator for each core.

Everything is compiled and copied in advance. (hy.ensemble_propagate_until_batch copies an
integrator for every batch, which takes far longer than these short integrations.)
"""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np

from jaxdyn import Threads

from . import Problem, Solve, without

# Its just-in-time compiler takes 15 s for the 4096 products of 64 units, at every tolerance anew.
MOST_UNITS = 64


def missing() -> str | None:
    return without("heyoka")


def cannot(problem: Problem) -> str | None:
    """Why a problem is left out, or None."""
    n = problem.x0.shape[1]
    if n <= MOST_UNITS:
        return None
    return f"heyoka at n = {n} (its compiler takes minutes for the n^2 products of a dense W)"


def taylor(problem: Problem, tol: float) -> Solve:
    """Adaptive steps, of an order that follows from `tol`."""
    import heyoka as hy

    W, x0 = problem.W, problem.x0
    real, (b, n) = x0.dtype.type, x0.shape
    width = hy.recommended_simd_size(real)
    units = hy.make_vars(*(f"x{i}" for i in range(n)))
    outputs = [hy.tanh(x) for x in units]
    equations = [
        (units[i], hy.sum([real(W[i, j]) * outputs[j] for j in range(n) if j != i]))
        for i in range(n)
    ]
    first = hy.taylor_adaptive_batch(
        equations,
        np.zeros((n, width), real),
        tol=real(tol),
        fp_type=real,
        force_avx512=width * real().nbytes == 64,
    )
    cores = Threads().count()
    integrators = [first, *(deepcopy(first) for _ in range(cores - 1))]
    batches = -(-b // width)
    # The last batch is filled up with copies of the last trajectory.
    padded = np.concatenate([x0, np.repeat(x0[-1:], batches * width - b, axis=0)])
    starts = np.ascontiguousarray(padded.reshape(batches, width, n).swapaxes(1, 2))
    ends = np.empty_like(starts)
    pool = ThreadPoolExecutor(cores)

    def work(core):
        integrator = integrators[core]
        for i in range(core, batches, cores):
            integrator.set_time(real(0))
            integrator.state[:] = starts[i]
            integrator.propagate_until(real(problem.t1))
            ends[i] = integrator.state

    def solve():
        list(pool.map(work, range(cores)))
        return ends.swapaxes(1, 2).reshape(-1, n)[:b]

    return solve
