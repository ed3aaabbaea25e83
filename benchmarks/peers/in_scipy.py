"""scipy's solve_ivp: the whole batch as one system, so that numpy does the work.

Its error norm is the mean square over all trajectories; one step size serves them all.
"""

from . import Problem, Solve, without


def missing() -> str | None:
    return without("scipy")


def adaptive(problem: Problem, tol: float, method: str = "DOP853") -> Solve:
    """`method`: DOP853, RK45, ... The state is float64 whatever x0 is."""
    import numpy as np
    from scipy.integrate import solve_ivp

    b, n = problem.x0.shape
    Wt = problem.W.T.astype(np.float64)
    x0 = problem.x0.astype(np.float64).ravel()

    def field(t, x):
        return (np.tanh(x).reshape(b, n) @ Wt).ravel()

    def solve():
        end = solve_ivp(
            field, (0.0, problem.t1), x0, method=method, rtol=tol, atol=tol, t_eval=[problem.t1]
        )
        return end.y[:, -1].reshape(b, n)

    return solve
