"""Lyapunov spectra by lyapax (PyPI): its RK4 steps, vmapped over the trajectories and compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import Problem, Solve, without


def missing() -> str | None:
    return without("lyapax")


def spectrum(problem: Problem, dt: float, every: int) -> Solve:
    """The exponents (b, n), by QR after every so many steps of RK4."""
    import lyapax

    W = jnp.asarray(problem.W)
    step = lyapax.integrators.rk4_step(lambda x: W @ jnp.tanh(x), dt)
    steps = round(problem.t1 / dt / every) * every

    @jax.jit
    def solve(x0: Any) -> Any:
        def one(x: Any) -> Any:
            return lyapax.lyapunov_spectrum(step, x, dt, steps, renorm_every=every).exponents

        return jax.vmap(one)(x0)

    x0 = jnp.asarray(problem.x0)
    return lambda: np.asarray(solve(x0))
