/* x' = W tanh x for a batch, as fast as plain C gets: the yardstick of the benchmarks.
 *
 * Trajectories go in tiles of V vectors, the tile in the minor axis, so that a tile stays in the
 * first-level cache through all steps; threads take whole tiles. Fewer trajectories than fill a
 * vector leave lanes idle. The file includes itself once for each precision. */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 4
/* GCC would load a vector again for each use, which costs a tenth of the time. */
#ifdef __x86_64__
#define HOLD(vector) __asm__("" : "+v"(vector))
#else
#define HOLD(vector)
#endif
#define PASTE(a, b) a##_##b
#define NAMED(a, b) PASTE(a, b)
#define NAME(a) NAMED(a, SUFFIX)

#define REAL float
#define WORD int32_t
#define SUFFIX f32
#define FRACTION_BITS 23
#define EXPONENT_BIAS 127
#define SATURATED 10.0f
#define DEGREE 7
#include __FILE__
#undef REAL
#undef WORD
#undef SUFFIX
#undef FRACTION_BITS
#undef EXPONENT_BIAS
#undef SATURATED
#undef DEGREE

#define REAL double
#define WORD int64_t
#define SUFFIX f64
#define FRACTION_BITS 52
#define EXPONENT_BIAS 1023
#define SATURATED 20.0
#define DEGREE 13
#include __FILE__

#else

#define VECTOR NAME(vector)
#define LANES ((int)(64 / sizeof(REAL)))
typedef REAL VECTOR __attribute__((vector_size(64)));

/* tanh |x| = (1 - m) / (1 + m), m = e^(-2 |x|) = 2^k e^r with |r| <= ln 2 / 2: right to 1.6e-7 and
 * to 3e-16, absolutely. */
INLINE REAL NAME(tanh)(REAL x) {
    static const double inverse_factorial[] = {
        1.0,           1.0,            1.0 / 2,         1.0 / 6,          1.0 / 24,
        1.0 / 120,     1.0 / 720,      1.0 / 5040,      1.0 / 40320,      1.0 / 362880,
        1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800,
    };
    REAL a = x < 0 ? x : -x;
    a = a < -SATURATED ? -SATURATED : a;
    REAL scaled = a * (REAL)(2 * 1.4426950408889634);
    REAL k = sizeof(REAL) == 4 ? rintf(scaled) : rint(scaled);
    REAL r = 2 * a - k * (REAL)0.6931471805599453;
    REAL m = (REAL)inverse_factorial[DEGREE];
    for (int i = DEGREE - 1; i >= 0; i--) m = m * r + (REAL)inverse_factorial[i];
    union { WORD word; REAL real; } power = {((WORD)k + EXPONENT_BIAS) << FRACTION_BITS};
    m *= power.real;
    REAL t = (1 - m) / (1 + m);
    return x < 0 ? -t : t;
}

/* g = h tanh x over `count` numbers. */
INLINE void NAME(tanh_of)(const REAL *x, REAL *g, long count, REAL h) {
#pragma omp simd aligned(x, g : 64)
    for (long l = 0; l < count; l++) g[l] = h * NAME(tanh)(x[l]);
}

void NAME(tanh_array)(const REAL *x, REAL *g, long count) {
    for (long l = 0; l < count; l++) g[l] = NAME(tanh)(x[l]);
}

/* sum[r] += sum_j W[r, j] g[j] for R rows: what stays in registers. */
INLINE void NAME(multiply)(int R, int V, int n, int count, const REAL *W, const VECTOR *g,
                           VECTOR *sum) {
    for (int j = 0; j < count; j++)
        for (int v = 0; v < V; v++) {
            VECTOR gj = g[j * V + v];
            HOLD(gj);
            for (int r = 0; r < R; r++) sum[r * V + v] += W[r * n + j] * gj;
        }
}

/* A stage of RK4 for R rows of k = W g: y = x + reach k where the next stage starts; `total` is
 * k1 + 2 k2 + 2 k3, so that x is rounded once a step. */
INLINE void NAME(stage_rows)(int which, int R, int V, int n, const REAL *W, const VECTOR *g,
                             VECTOR *x, VECTOR *total, VECTOR *y, REAL dt) {
    VECTOR k[4 * 4] = {0};
    NAME(multiply)(R, V, n, n, W, g, k);
    for (int i = 0; i < R * V; i++) {
        if (which == 3) {
            x[i] += dt / 6 * (total[i] + k[i]);
        } else {
            total[i] = which == 0 ? k[i] : total[i] + 2 * k[i];
            y[i] = x[i] + (which == 2 ? dt : dt / 2) * k[i];
        }
    }
}

INLINE void NAME(stage)(int which, int V, int n, const REAL *W, VECTOR *x, VECTOR *room, REAL dt) {
    VECTOR *g = room, *y = room + n * V, *total = room + 2 * n * V;
    int i = 0;
    NAME(tanh_of)((REAL *)(which == 0 ? x : y), (REAL *)g, (long)n * V * LANES, 1);
#define ROWS(R)                                                                                    \
    for (; i + R <= n; i += R)                                                                     \
    NAME(stage_rows)(which, R, V, n, W + i * n, g, x + i * V, total + i * V, y + i * V, dt)
    ROWS(4);
    ROWS(2);
    ROWS(1);
#undef ROWS
}

INLINE void NAME(rk4_tile)(int V, int n, const REAL *W, VECTOR *x, VECTOR *room, REAL dt,
                           long steps) {
    for (long step = 0; step < steps; step++) {
        NAME(stage)(0, V, n, W, x, room, dt);
        NAME(stage)(1, V, n, W, x, room, dt);
        NAME(stage)(2, V, n, W, x, room, dt);
        NAME(stage)(3, V, n, W, x, room, dt);
    }
}

/* Rows x[from:to] += W[from:to, first:first + count] p. */
INLINE void NAME(push)(int V, int n, const REAL *W, VECTOR *x, const VECTOR *p, int first,
                       int count, int from, int to) {
    int i = from;
#define ROWS(R)                                                                                    \
    for (; i + R <= to; i += R) {                                                                  \
        VECTOR sum[R * 4];                                                                         \
        for (int m = 0; m < R * V; m++) sum[m] = x[i * V + m];                                     \
        NAME(multiply)(R, V, n, count, W + i * n + first, p, sum);                                 \
        for (int m = 0; m < R * V; m++) x[i * V + m] = sum[m];                                     \
    }
    ROWS(4)
    ROWS(1)
#undef ROWS
}

/* The shears of units first .. first + count - 1 over time h, one after the other: each moves the
 * block at once, and all together move the rest. */
INLINE void NAME(kick)(int V, int n, const REAL *W, VECTOR *x, int first, int count, REAL h,
                       int ascending) {
    VECTOR p[BLOCK * 4];
    for (int turn = 0; turn < count; turn++) {
        int own = ascending ? turn : count - 1 - turn, i = first + own;
        NAME(tanh_of)((REAL *)(x + i * V), (REAL *)(p + own * V), V * LANES, h);
        for (int j = first; j < first + count; j++)
            for (int v = 0; v < V; v++) x[j * V + v] += W[j * n + i] * p[own * V + v];
    }
    NAME(push)(V, n, W, x, p, first, count, 0, first);
    NAME(push)(V, n, W, x, p, first, count, first + count, n);
}

/* A step is chi(h/2) chi*(h/2). The two kicks of the last unit are one, and so are those of the
 * first between steps. */
INLINE void NAME(strang_tile)(int V, int n, const REAL *W, VECTOR *x, VECTOR *room, REAL dt,
                              long steps) {
    (void)room;
    const int blocks = (n - 2 + BLOCK - 1) / BLOCK;
    NAME(kick)(V, n, W, x, 0, 1, dt / 2, 1);
    for (long step = 0; step < steps; step++) {
        for (int turn = 0; turn < 2 * blocks; turn++) {
            int first = 1 + BLOCK * (turn < blocks ? turn : 2 * blocks - 1 - turn);
            int count = n - 1 - first < BLOCK ? n - 1 - first : BLOCK;
            if (turn == blocks) NAME(kick)(V, n, W, x, n - 1, 1, dt, 1);
            if (count == BLOCK)
                NAME(kick)(V, n, W, x, first, BLOCK, dt / 2, turn < blocks);
            else
                NAME(kick)(V, n, W, x, first, count, dt / 2, turn < blocks);
        }
        if (blocks == 0) NAME(kick)(V, n, W, x, 1, 1, dt, 1);
        NAME(kick)(V, n, W, x, 0, 1, step + 1 < steps ? dt : dt / 2, 1);
    }
}

/* x0, x1: (b, n). W: (n, n). */
#define ENSEMBLE(METHOD, V)                                                                        \
    const long T = V * LANES;                                                                      \
    _Pragma("omp parallel if(b > T)") {                                                            \
        VECTOR *x = aligned_alloc(64, 4 * sizeof(VECTOR) * n * V), *room = x + n * V;              \
        REAL *one = (REAL *)x;                                                                     \
        _Pragma("omp for schedule(dynamic)") for (long tile = 0; tile < (b + T - 1) / T; tile++) { \
            for (long l = 0; l < T; l++)                                                           \
                for (int i = 0; i < n; i++) {                                                      \
                    long row = tile * T + l;                                                       \
                    one[i * T + l] = row < b ? x0[row * n + i] : 0;                                \
                }                                                                                  \
            NAME(METHOD##_tile)(V, n, W, x, room, dt, steps);                                      \
            for (long l = 0; l < T && tile * T + l < b; l++)                                       \
                for (int i = 0; i < n; i++) x1[(tile * T + l) * n + i] = one[i * T + l];           \
        }                                                                                          \
        free(x);                                                                                   \
    }
#define SOLVE(METHOD)                                                                              \
    void NAME(METHOD)(int n, long b, const REAL *W, const REAL *x0, REAL *x1, double dt_,          \
                      long steps) {                                                                \
        const REAL dt = dt_;                                                                       \
        if (b <= LANES) {                                                                          \
            ENSEMBLE(METHOD, 1)                                                                    \
        } else {                                                                                   \
            ENSEMBLE(METHOD, 4)                                                                    \
        }                                                                                          \
    }
SOLVE(rk4)
SOLVE(strang)

#undef ENSEMBLE
#undef SOLVE
#undef VECTOR
#undef LANES
#endif
