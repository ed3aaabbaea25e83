"""diffrax: vmapped over trajectories, each with its own step size, as its documentation does it; or
the batch in the state, in the minor axis, with one step size for all.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp

from . import Problem, Solve

Tsit5 = diffrax.Tsit5
Dopri8 = diffrax.Dopri8


def missing() -> str | None:
    return None


def adaptive(problem: Problem, tol: float, solver: diffrax.AbstractSolver) -> Solve:
    """Vmapped; PIDController(rtol = atol = tol), first step 0.1."""
    W, x0, t1 = _arrays(problem)
    controller = diffrax.PIDController(rtol=tol, atol=tol)
    return lambda: _vmapped(solver, controller, 100_000, W, x0, t1, jnp.asarray(0.1, x0.dtype))


def fixed(problem: Problem, steps: int, solver: diffrax.AbstractSolver) -> Solve:
    """Vmapped, with a constant step."""
    W, x0, t1 = _arrays(problem)
    controller = diffrax.ConstantStepSize()
    return lambda: _vmapped(solver, controller, steps + 2, W, x0, t1, t1 / steps)


def batched(problem: Problem, steps: int, solver: diffrax.AbstractSolver) -> Solve:
    """The batch in the state, with a constant step."""
    W, x0, t1 = _arrays(problem)
    return lambda: _batched(solver, diffrax.ConstantStepSize(), steps + 2, W, x0, t1, t1 / steps)


def batched_adaptive(problem: Problem, tol: float, solver: diffrax.AbstractSolver) -> Solve:
    """The batch in the state, one step size for all, the error norm over all of it."""
    W, x0, t1 = _arrays(problem)
    controller = diffrax.PIDController(rtol=tol, atol=tol)
    return lambda: _batched(solver, controller, 100_000, W, x0, t1, jnp.asarray(0.1, x0.dtype))


def _arrays(problem: Problem):
    """With times of the state's dtype: plain numbers would be float64 under x64."""
    x0 = jnp.asarray(problem.x0)
    return jnp.asarray(problem.W), x0, jnp.asarray(problem.t1, x0.dtype)


def _solve(solver, controller, max_steps, W, x, t1, dt0):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, W: W @ jnp.tanh(x)),
        solver,
        jnp.zeros_like(t1),
        t1,
        dt0,
        x,
        args=W,
        stepsize_controller=controller,
        max_steps=max_steps,
    ).ys[-1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _vmapped(solver, controller, max_steps, W, x0, t1, dt0):
    return jax.vmap(lambda x: _solve(solver, controller, max_steps, W, x, t1, dt0))(x0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batched(solver, controller, max_steps, W, x0, t1, dt0):
    return _solve(solver, controller, max_steps, W, x0.T, t1, dt0).T
