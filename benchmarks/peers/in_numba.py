"""numba: tiles of trajectories in parallel, fastmath, the tile in the minor axis.

LLVM makes vector code of every inner loop. Its tanh is written out, as only Intel's own library
gives it a vector tanh: scalar calls of the C library took most of the time.
"""

import functools

import numpy as np

from . import Problem, Solve, without

TILE = 64
UNROLL = 8


def missing() -> str | None:
    return without("numba")


def rk4(problem: Problem, steps: int) -> Solve:
    import numba

    W, x0 = (np.ascontiguousarray(a) for a in (problem.W, problem.x0))
    method = _compiled(x0.dtype.name)
    dt = x0.dtype.type(problem.t1 / steps)
    threads = min(-(-len(x0) // TILE), numba.config.NUMBA_NUM_THREADS)

    def solve(steps=steps):
        numba.set_num_threads(threads)
        return method(W, x0, dt, steps)

    solve(1)
    return solve


@functools.cache
def _compiled(dtype: str):
    """RK4 in one precision. All constants carry it: a plain number would be float64."""
    import numba

    real = np.dtype(dtype).type
    single = dtype == "float32"
    word = np.int32 if single else np.int64
    bias, shift = (127, 23) if single else (1023, 52)
    saturated = real(10 if single else 20)
    degree = 7 if single else 13
    factorials = np.cumprod([1.0, *range(1, degree + 1)])
    series = tuple(real(1 / f) for f in factorials)
    zero, half, one, two = (real(c) for c in (0, 0.5, 1, 2))
    log2e, ln2, sixth = (real(c) for c in (1 / np.log(2), np.log(2), 1 / 6))
    jit = numba.njit(fastmath=True)

    @jit
    def tanh(x, g, h, powers, words):
        """g = h tanh x. tanh |x| = (1 - m) / (1 + m), m = e^(-2 |x|) = 2^k e^r."""
        for l in range(TILE):
            a = -two * min(abs(x[l]), saturated)
            k = np.floor(a * log2e + half)
            r = a - k * ln2
            m = series[degree]
            for d in range(degree):
                m = m * r + series[degree - 1 - d]
            g[l] = m
            words[l] = (word(k) + bias) << shift
        for l in range(TILE):
            m = g[l] * powers[l]
            t = (one - m) / (one + m)
            g[l] = h * (-t if x[l] < zero else t)

    @jit
    def row(W, g, i, k):
        """k = sum_j W[i, j] g[j]."""
        n = W.shape[0]
        for l in range(TILE):
            k[l] = zero
        whole = n - n % UNROLL
        for j in range(0, whole, UNROLL):
            for l in range(TILE):
                k[l] += (
                    W[i, j] * g[j, l]
                    + W[i, j + 1] * g[j + 1, l]
                    + W[i, j + 2] * g[j + 2, l]
                    + W[i, j + 3] * g[j + 3, l]
                    + W[i, j + 4] * g[j + 4, l]
                    + W[i, j + 5] * g[j + 5, l]
                    + W[i, j + 6] * g[j + 6, l]
                    + W[i, j + 7] * g[j + 7, l]
                )
        for j in range(whole, n):
            for l in range(TILE):
                k[l] += W[i, j] * g[j, l]

    @jit
    def rk4(W, x, dt, steps, powers, words):
        n = W.shape[0]
        g, y, total, k = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty_like(x[0])
        for _ in range(steps):
            for stage in range(4):
                weight = two if stage == 1 or stage == 2 else one
                reach = dt * (one if stage == 2 else half)
                for i in range(n):
                    tanh(x[i] if stage == 0 else y[i], g[i], one, powers, words)
                for i in range(n):
                    row(W, g, i, k)
                    for l in range(TILE):
                        before = zero if stage == 0 else total[i, l]
                        total[i, l] = before + weight * k[l]
                        y[i, l] = x[i, l] + reach * k[l]
            for i in range(n):
                for l in range(TILE):
                    x[i, l] += dt * sixth * total[i, l]

    @numba.njit(fastmath=True, parallel=True)
    def ensemble(W, x0, dt, steps):
        b, n = x0.shape
        x1 = np.empty_like(x0)
        for tile in numba.prange((b + TILE - 1) // TILE):
            first = tile * TILE
            count = min(TILE, b - first)
            words = np.empty(TILE, word)
            x = np.zeros((n, TILE), real)
            for l in range(count):
                for i in range(n):
                    x[i, l] = x0[first + l, i]
            rk4(W, x, dt, steps, words.view(real), words)
            for l in range(count):
                for i in range(n):
                    x1[first + l, i] = x[i, l]
        return x1

    return ensemble
