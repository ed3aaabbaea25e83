"""One case of the gradient benchmark in a process of its own.

The argument of `python -m benchmarks.gradient_case` is a `Case` as JSON. It compiles, says so, and
then obeys lines on its input: `run` times one call, `save PATH` also keeps the value and the
gradients. Answers are lines of JSON.
"""

import ctypes
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import jaxdyn as jd
from jaxdyn._cell import SharedInput

DT = 0.05
# A regular orbit: on a chaotic one gradients grow beyond all floating-point numbers.
AMPLITUDE = 0.1


@dataclass(frozen=True)
class Case:
    method: str
    steps: int
    n: int
    batch: int
    dtype: str


def final_states(method: str, steps: int) -> Any:
    """x(T) as a function of the cell and x0, differentiated in the way of `method`."""
    if method == "recursive, batch in the state":
        return lambda cell, x0: recursive(cell, x0, steps)
    if method == "stored":
        return lambda cell, x0: stored(cell, x0, steps)
    adjoint = None
    if method == "reversible":
        adjoint = jd.ReversibleAdjoint()
    elif method == "recursive, simulate":
        adjoint = diffrax.RecursiveCheckpointAdjoint()
    return lambda cell, x0: jd.simulate(cell, x0, n_steps=steps, dt=DT, adjoint=adjoint).ys[:, 0]


def stored(cell, x0, steps):
    """A plain scan: reverse mode keeps what it needs of every step."""
    solver, dt = jd.Strang(), jnp.asarray(DT, x0.dtype)
    prepared = solver.prepare(cell, dt)

    def step(x, _):
        return solver.advance_batch(prepared, 0 * dt, dt, x, SharedInput(None)), None

    return jax.lax.scan(step, x0.T, None, length=steps)[0].T


class _BatchedStrang(diffrax.AbstractSolver):
    """Strang for states (n, b), which diffrax cannot know of; `args` is the prepared cell."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1 = jd.Strang().advance_batch(args, t0, t1 - t0, y0, SharedInput(None))
        return y1, None, dict(y0=y0, y1=y1), None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def recursive(cell, x0, steps):
    """diffrax as an expert would call it: one solve whose state is the whole batch."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: 0 * y),
        _BatchedStrang(),
        jnp.zeros((), x0.dtype),
        jnp.asarray(steps * DT, x0.dtype),
        jnp.asarray(DT, x0.dtype),
        x0.T,
        jd.Strang().prepare(cell, jnp.asarray(DT, x0.dtype)),
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
        max_steps=steps + 1 + steps // 1000,
    )
    assert solution.ys is not None
    return solution.ys[0].T


def problem(case: Case) -> tuple[Any, jax.Array, jax.Array]:
    """W, x0 and the c of the loss: the mean over the batch of c . x(T), which nothing conserves."""
    dtype = jnp.dtype(case.dtype)
    W = jd.DenseSkew.random(case.n, key=jr.key(0), dtype=dtype)
    x0 = AMPLITUDE * jr.normal(jr.key(1), (case.batch, case.n), dtype)
    return W, x0, jr.normal(jr.key(2), (case.n,), dtype)


def compiled(case: Case) -> tuple[Any, tuple[Any, jax.Array, jax.Array]]:
    end = final_states(case.method, case.steps)

    def loss(W, x0, c):
        return jnp.mean(end(jd.PoissonCell(W, jd.Tanh()), x0) @ c)

    function = loss if case.method == "forward" else jax.value_and_grad(loss, argnums=(0, 1))
    arguments = problem(case)
    return jax.jit(function).lower(*arguments).compile(), arguments


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    case = Case(**json.loads(sys.argv[1]))
    start = time.perf_counter()
    function, arguments = compiled(case)
    temporary = function.memory_analysis().temp_size_in_bytes
    _say(compile=time.perf_counter() - start, temporary=temporary)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        before = forget_peak()
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds = time.perf_counter() - start
        peak = resident("VmHWM")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result)]
        if command == "save":
            np.savez(path, *leaves)
        _say(
            seconds=seconds,
            grown=None if before is None or peak is None else peak - before,
            finite=all(bool(np.all(np.isfinite(leaf))) for leaf in leaves),
        )


def _say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


def forget_peak() -> int | None:
    """Gives freed memory back to Linux, makes the peak what is resident now, and returns that.

    Without it the peak is the compiler's, far above that of any run.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return resident("VmRSS")


def resident(name: str) -> int | None:
    """Bytes of this process's memory: VmRSS now, VmHWM at the peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)


if __name__ == "__main__":
    main()
