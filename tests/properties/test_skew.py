"""Properties of skew operators on entries that hypothesis chooses, repeated and zero ones too."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jaxdyn as jd

EPS = np.finfo(np.float64).eps
N = 6
PATTERN = ([1, 3, 4, 5, 5], [0, 1, 0, 2, 4])
# Small integers make degenerate spectra and kernels. Nothing so small that products of a few
# entries, or sums in a Fourier transform, underflow.
FLOATS = st.floats(-1e3, 1e3).map(lambda v: v if abs(v) > 1e-80 else 0.0)
NUMBERS = st.integers(-2, 2).map(float) | FLOATS

# Shapes of the free entries, and the operator made of them.
BUILD = {
    "dense": ([15], jd.DenseSkew),
    "bipartite": ([(2, 4)], jd.BipartiteSkew),
    "block": ([3], jd.BlockSkew),
    "spectral": ([3, (4, 6)], jd.SpectralSkew),
    "low_rank": ([(6, 2), (6, 2)], jd.LowRankSkew),
    "banded": ([5, 4], lambda *bands: jd.BandedSkew(bands)),
    "circulant": ([2], lambda c: jd.CirculantSkew(c, N)),
    "sparse": ([5], lambda v: jd.SparseSkew(v, *PATTERN, N)),
}


@jax.jit
def evaluated(op, x):
    return op.as_matrix(), op.T.as_matrix(), op.mv(x), op.frequencies()


def operators(name):
    shapes, make = BUILD[name]
    entries = [arrays(np.float64, shape, elements=NUMBERS) for shape in shapes]
    return st.tuples(*entries).map(lambda parts: make(*parts))


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_skewness_and_spectrum(name, data):
    op = data.draw(operators(name))
    x = data.draw(arrays(np.float64, N, elements=NUMBERS))
    W, transposed, y, frequencies = map(np.asarray, evaluated(op, x))
    size = N * np.abs(W).max()  # a bound of the norm that does not underflow

    np.testing.assert_array_equal(W, -W.T)
    np.testing.assert_array_equal(transposed, -W)
    # Cancellation inside U V^T - V U^T: its terms are larger than W.
    terms = size
    if name == "low_rank":
        terms = 2 * N * np.abs(op.left).max() * N * np.abs(op.right).max()
    # N products of rounding error eps each, a few times over for Q W Q^T and for the Fourier sums.
    bound = 10 * N * EPS * terms * np.linalg.norm(x)
    np.testing.assert_allclose(y, W @ x, rtol=0, atol=bound)
    assert abs(x @ y) <= bound * np.linalg.norm(x)

    parts = np.sort(np.abs(np.linalg.eigvals(W).imag))[::-1][::2][::-1]
    np.testing.assert_allclose(frequencies, parts, rtol=0, atol=100 * EPS * terms)


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_matrix_round_trip_and_kernel(name, data):
    op = data.draw(operators(name))
    W = np.asarray(op.as_matrix())
    back = np.asarray(type(op).from_matrix(W).as_matrix())
    size = N * np.abs(W).max()
    if name in ("spectral", "low_rank"):
        np.testing.assert_allclose(back, W, rtol=0, atol=20 * N * EPS * size)
    else:
        np.testing.assert_array_equal(back, W)

    rows = np.asarray(op.kernel())
    assert len(rows) % 2 == N % 2
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=20 * EPS)
    terms = size
    if name == "low_rank":
        terms = 2 * N * np.abs(op.left).max() * N * np.abs(op.right).max()
    np.testing.assert_allclose(W @ rows.T, 0, atol=20 * N * EPS * terms)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sparse_coloring_is_proper(data):
    n = data.draw(st.integers(1, 12))
    below = [(i, j) for i in range(n) for j in range(i)]
    pairs = sorted(data.draw(st.sets(st.sampled_from(below)))) if below else []
    rows, cols = np.array(pairs, int).reshape(-1, 2).T
    classes = jd.SparseSkew(np.ones(len(pairs)), rows, cols, n).coloring()
    color = np.full(n, -1)
    for c, members in enumerate(classes):
        assert (color[members] == -1).all()
        color[members] = c
    assert (color >= 0).all()
    assert (color[rows] != color[cols]).all()
    degree = np.bincount(np.concatenate([rows, cols]), minlength=n)
    assert len(classes) <= degree.max(initial=0) + 1
