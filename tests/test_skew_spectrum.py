"""Frequencies, kernels, colourings and norms of skew operators, small and at 100,000 units."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg

import jaxdyn as jd
from jaxdyn._skew import FormedSkew
from jaxdyn._skew.coloring import Coloring
from jaxdyn._skew.graph import Pattern

EPS = np.finfo(np.float64).eps


@functools.cache
def built(name, n):
    """An operator with normal entries; n = 6 or 7."""
    rng = np.random.default_rng(n)

    def entries(*shape):
        return rng.normal(size=shape) / 2

    def sparse():
        rows = np.array([1, 2, 3, 4, 5, 5])
        return jd.SparseSkew(entries(6), rows, [0, 0, 1, 2, 1, 3], n)

    return {
        "dense": lambda: jd.DenseSkew(entries(n * (n - 1) // 2)),
        "bipartite": lambda: jd.BipartiteSkew(entries(2, n - 2)),
        "block": lambda: jd.BlockSkew(entries(n // 2)),
        "spectral": lambda: jd.SpectralSkew(entries(n // 2), entries(n - 1, n)),
        "low_rank": lambda: jd.LowRankSkew(entries(n, 2), entries(n, 2)),
        "banded": lambda: jd.BandedSkew((entries(n - 1), entries(n - 2))),
        "circulant": lambda: jd.CirculantSkew(entries((n - 1) // 2), n),
        "sparse": sparse,
    }[name]()


NAMES = ["dense", "bipartite", "block", "spectral", "low_rank", "banded", "circulant", "sparse"]
# An odd number of units is another case for most; blocks are even.
each = pytest.mark.parametrize(
    "name, n", [(name, n) for n in (6, 7) for name in NAMES if (name, n) != ("block", 7)]
)


def frequencies_of(W):
    """The positive half of the imaginary parts, by numpy's general eigenvalue solver."""
    parts = np.sort(np.abs(np.linalg.eigvals(np.asarray(W)).imag))[::-1]
    return parts[: 2 * (len(W) // 2) : 2][::-1]


@pytest.mark.core
@each
def test_frequencies_are_the_spectrum(name, n):
    op = built(name, n)
    got = jax.jit(lambda op: op.frequencies())(op)
    assert got.shape == (op.size // 2,)
    assert (got >= 0).all() and (np.diff(got) >= 0).all()
    # A normal matrix: eigenvalues are good to a few n eps |W|, and |W| is of order 1.
    np.testing.assert_allclose(got, frequencies_of(op.as_matrix()), rtol=0, atol=100 * EPS)


@each
def test_frequencies_are_differentiable(name, n):
    """Against central differences of step 1e-5: rounding 1e-11, truncation 1e-10."""
    op = built(name, n)
    weights = jnp.linspace(1.0, 2.0, op.size // 2)
    leaves, tree = jax.tree.flatten(op)

    @jax.jit
    @jax.value_and_grad
    def weighted(leaves):
        return weights @ jax.tree.unflatten(tree, leaves).frequencies()

    direction = [np.random.default_rng(1).normal(size=leaf.shape) for leaf in leaves]
    (ahead, _), (behind, _), (_, slope) = (
        weighted([np.asarray(a) + h * d for a, d in zip(leaves, direction, strict=True)])
        for h in (1e-5, -1e-5, 0.0)
    )
    along = sum(np.vdot(a, d) for a, d in zip(slope, direction, strict=True))
    assert abs(along) > 1e-3
    # Zeros stay zeros in these structures, so the spectrum is simple where it moves.
    np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-7)


@pytest.mark.core
@each
def test_kernel(name, n):
    op = built(name, n)
    rows = np.asarray(op.kernel())
    W = np.asarray(op.as_matrix())
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-14)
    np.testing.assert_allclose(W @ rows.T, 0, atol=1e-14)
    assert len(rows) == op.size - np.linalg.matrix_rank(W)


def test_kernel_counts_what_stands_still():
    still = jnp.array([0.0, 2.0, 0.0])
    expected = {
        4: jd.BlockSkew(still),
        5: jd.SpectralSkew(still, jnp.ones((3, 7))),
        6: jd.BipartiteSkew(jnp.ones((3, 5))),
        7: jd.LowRankSkew(jnp.ones((9, 2)), jnp.arange(18.0).reshape(9, 2)),
        # c_1 = 1 on a ring of 10: 2 sin(2 pi j / 10) vanishes for j = 0 and 5 only.
        2: jd.CirculantSkew([1.0, 0.0, 0.0, 0.0], 10),
        # c_3 = c_6 = 1 of 18: 2 sin(pi j / 3) + 2 sin(2 pi j / 3) vanishes for j = 0, 2, 3, 4 of
        # every 6; each j but 0 and 9 gives a cosine and shares a sine with 18 - j.
        12: jd.CirculantSkew([0, 0, 1.0, 0, 0, 1.0, 0, 0], 18),
    }
    for count, op in expected.items():
        rows = op.kernel()
        assert rows.shape == (count, op.size)
        np.testing.assert_allclose(op.as_matrix() @ rows.T, 0, atol=1e-14)
        np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=1e-14)
    for zero in (jd.DenseSkew(jnp.zeros(10)), jd.SparseSkew([], [], [], 5)):
        np.testing.assert_allclose(zero.kernel() @ zero.kernel().T, np.eye(5), atol=1e-15)
        np.testing.assert_array_equal(zero.frequencies(), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"kernel\(\).*outside"):
        eqx.filter_jit(lambda op: op.kernel())(jd.DenseSkew(jnp.ones(3)))


@each
def test_coloring_is_a_partition_into_uncoupled_classes(name, n):
    op = built(name, n)
    W = np.asarray(op.as_matrix())
    units = np.arange(op.size)
    classes = op.coloring()
    members = np.concatenate([units[c] for c in classes])
    np.testing.assert_array_equal(np.sort(members), units)
    for c in classes:
        np.testing.assert_array_equal(W[c][:, c], 0)


def test_number_of_colours():
    assert len(jd.DenseSkew(np.ones(36)).coloring()) == 9
    assert len(jd.BipartiteSkew(np.ones((4, 5))).coloring()) == 2
    assert len(jd.BipartiteSkew(np.ones((3, 0))).coloring()) == 1
    assert jd.BlockSkew(np.ones(4)).coloring() == (slice(0, 8, 2), slice(1, 8, 2))
    assert len(jd.BandedSkew((np.ones(8), np.ones(7), np.ones(6))).coloring()) == 4
    assert len(jd.CirculantSkew(np.ones(4), 9).coloring()) == 9

    # A square grid, a cycle of even length and a tree are bipartite: two colours. An odd cycle: 3.
    def sparse(pairs, n):
        pairs = sorted((max(p), min(p)) for p in pairs)
        rows, cols = zip(*pairs, strict=True)
        return jd.SparseSkew(np.ones(len(rows)), rows, cols, n)

    grid = [(7 * i + j, 7 * i + j + 1) for i in range(7) for j in range(6)]
    grid += [(7 * i + j, 7 * i + j + 7) for i in range(6) for j in range(7)]
    assert len(sparse(grid, 49).coloring()) == 2
    assert len(sparse([(i, (i + 1) % 10) for i in range(10)], 10).coloring()) == 2
    assert len(sparse([(i, (i - 1) // 2) for i in range(1, 15)], 15).coloring()) == 2
    assert len(sparse([(i, (i + 1) % 9) for i in range(9)], 9).coloring()) == 3
    assert len(sparse(itertools.combinations(range(5), 2), 8).coloring()) == 5
    path = sparse([(i, i + 1) for i in range(9)], 10)
    assert path.coloring() == (slice(0, 9, 2), slice(1, 10, 2))
    assert Coloring((slice(0, 9, 2),)) != Coloring((slice(0, 7, 2),))
    assert hash(Coloring(path.coloring())) == hash(Coloring((slice(0, 9, 2), slice(1, 10, 2))))


@pytest.mark.parametrize("n, bandwidth", [(12, 1), (12, 2), (13, 3), (9, 5), (7, 6)])
def test_banded_classes_hear_their_neighbours(n, bandwidth):
    rng = np.random.default_rng(n)
    op = jd.BandedSkew([rng.normal(size=n - k) for k in range(1, bandwidth + 1)])
    W = np.asarray(jax.jit(jd.BandedSkew.as_matrix)(op))
    pulses = [jnp.cos(1.0 + np.arange(n)[units]) for units in op.coloring()]
    effects = jax.jit(lambda: [op.color_mv(c, g) for c, g in enumerate(pulses)])()
    for units, g, effect in zip(op.coloring(), pulses, effects, strict=True):
        np.testing.assert_allclose(effect, W[:, units] @ g, atol=10 * EPS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_norm_beyond_the_dense_limit(dtype):
    """The Lanczos norm against LAPACK's bisection; i W is similar to the tridiagonal of |b|."""
    op = jd.BandedSkew.random(2001, key=jr.key(0), dtype=dtype)
    b = np.abs(np.asarray(op.bands[0], np.float64))
    largest = scipy.linalg.eigvalsh_tridiagonal(
        np.zeros(op.size), b, select="i", select_range=(op.size - 1, op.size - 1)
    )
    # Seen: 1e-15 in float64, 4e-7 in float32.
    np.testing.assert_allclose(largest, 1.0, rtol=1e-13 if op.dtype == np.float64 else 2e-6)


LARGE = 100_000


def at_large(op, want):
    """W x for 100,000 units; a dense W would be 80 GB."""
    x = jr.normal(jr.key(1), (LARGE,))
    apply = jax.jit(lambda op, x: op.mv(x)).lower(op, x).compile()
    scratch = apply.memory_analysis().temp_size_in_bytes
    assert scratch < 100 * x.nbytes
    np.testing.assert_allclose(*want(np.asarray(apply(op, x)), np.asarray(x)), rtol=0, atol=1e-12)


@pytest.mark.core
def test_banded_at_100_000_units():
    op = jd.BandedSkew(tuple(jr.normal(jr.key(k), (LARGE - k,)) for k in (1, 2, 3)))

    def want(y, x):
        z = np.zeros(LARGE)
        for k, band in enumerate(np.asarray(b) for b in op.bands):
            z[k + 1 :] += band * x[: -k - 1]
            z[: -k - 1] -= band * x[k + 1 :]
        return y, z

    at_large(op, want)
    assert len(op.coloring()) == 4


def test_circulant_at_100_000_units():
    op = jd.CirculantSkew(jr.normal(jr.key(0), (LARGE // 2 - 1,)) / 300, LARGE)
    c = np.concatenate([[0.0], op.entries, [0.0], -op.entries[::-1]])

    def want(y, x):
        rows = [0, 1, 777, LARGE // 2, LARGE - 1]
        return y[rows], [np.roll(c[::-1], i + 1) @ x for i in rows]

    at_large(op, want)


def test_low_rank_at_100_000_units():
    op = jd.LowRankSkew.random(LARGE, key=jr.key(0), rank=5)
    U, V = np.asarray(op.left), np.asarray(op.right)
    at_large(op, lambda y, x: (y, U @ (V.T @ x) - V @ (U.T @ x)))
    np.testing.assert_allclose(op.frequencies()[-1], 1.0, rtol=1e-13)
    assert op.frequencies().shape == (LARGE // 2,)


def test_sparse_at_100_000_units():
    rng = np.random.default_rng(0)
    flat = np.unique(np.sort(rng.integers(0, LARGE, (500_000, 2)), axis=1) @ [1, LARGE])
    rows, cols = np.divmod(flat, LARGE)
    rows, cols = rows[rows > cols], cols[rows > cols]
    op = jd.SparseSkew(rng.normal(size=rows.size), rows, cols, LARGE)

    def want(y, x):
        z, v = np.zeros(LARGE), np.asarray(op.values)
        np.add.at(z, rows, v * x[cols])
        np.add.at(z, cols, -v * x[rows])
        return y, z

    at_large(op, want)
    colors = op.pattern.colors
    assert (colors[rows] != colors[cols]).all()
    assert sum(map(np.size, (np.arange(LARGE)[c] for c in op.coloring()))) == LARGE
    assert len(op.coloring()) <= 10  # 7 seen; at most one more than the largest degree, 28
    with pytest.raises(ValueError, match="20000 units"):
        op.frequencies()


def test_pattern_equality_is_by_content():
    one, two = (Pattern(3, np.array([1, 2]), np.array([0, 1])) for _ in range(2))
    assert one == one and one == two and hash(one) == hash(two)
    assert one != Pattern(4, one.rows, one.cols)
    assert one != Pattern(3, one.rows, np.array([0, 0]))
    assert one != "pattern"


def test_formed_operator_has_the_dense_defaults():
    op = jd.DenseSkew.random(5, key=jr.key(0))
    formed = FormedSkew.from_matrix(op.as_matrix())
    np.testing.assert_array_equal(formed.as_matrix(), op.as_matrix())
    np.testing.assert_allclose(formed.frequencies(), op.frequencies(), rtol=1e-14)
    assert len(formed.coloring()) == 5
