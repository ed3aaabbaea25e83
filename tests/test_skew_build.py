"""Drawing skew operators, reading them from matrices, and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg

import jaxdyn as jd

EPS = np.finfo(np.float64).eps
KEY = jr.key(0)
CLASSES = [
    jd.DenseSkew,
    jd.BipartiteSkew,
    jd.BlockSkew,
    jd.SpectralSkew,
    jd.LowRankSkew,
    jd.BandedSkew,
    jd.CirculantSkew,
    jd.SparseSkew,
]
each_class = pytest.mark.parametrize("cls", CLASSES)
PAIR = np.array([[0.0, 1.5], [-1.5, 0.0]])


@pytest.mark.core
@each_class
def test_random_has_the_norm_asked_for(cls):
    """Drawn under jit and vmap: a stack of operators, each what its own key draws alone."""
    positions = {}
    if cls is jd.SparseSkew:  # static, so drawn outside
        pattern = cls.random(6, key=KEY)
        positions = dict(rows=pattern.rows, cols=pattern.cols)
    keys = jnp.stack([KEY, KEY, jr.key(1), KEY])
    scales = jnp.array([2.5, 2.5, 0.7, 0.0])
    x = jnp.arange(6.0)

    @eqx.filter_jit
    @eqx.filter_vmap
    def draw(key, scale):
        op = cls.random(6, key=key, scale=scale, **positions)
        return op, op.as_matrix(), op.mv(x)

    stacked, matrices, products = draw(keys, scales)
    assert stacked.size == 6 and stacked.dtype == np.float64
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {4}
    # n eps for the eigenvalue solver, a few more for the products of some structures.
    norms = np.linalg.norm(matrices, 2, axis=(1, 2))
    np.testing.assert_allclose(norms, scales, rtol=30 * EPS)
    np.testing.assert_array_equal(matrices[0], matrices[1])
    assert np.abs(matrices[0] / 2.5 - matrices[2] / 0.7).max() > 0.1
    np.testing.assert_allclose(products, np.asarray(matrices) @ x, atol=200 * EPS)

    @eqx.filter_jit
    def single(scale):
        op = cls.random(6, key=KEY, scale=scale, dtype=jnp.float32, **positions)
        return op, op.as_matrix()

    op, matrix = single(jnp.float64(2.5))
    assert op.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.asarray(matrix, float), 2), 2.5, rtol=1e-6)


def test_random_options():
    omega = jnp.array([0.3, -2.0, 0.7])
    np.testing.assert_array_equal(jd.BlockSkew.random(6, key=KEY, frequencies=omega).omega, omega)
    op = jd.SpectralSkew.random(7, key=KEY, frequencies=omega)
    np.testing.assert_array_equal(op.frequencies(), [0.3, 0.7, 2.0])
    shape = jax.eval_shape
    assert shape(lambda: jd.BipartiteSkew.random(7, key=KEY)).coupling.shape == (4, 3)
    assert shape(lambda: jd.BipartiteSkew.random(7, key=KEY, split=1)).coupling.shape == (1, 6)
    assert shape(lambda: jd.LowRankSkew.random(5, key=KEY)).rank == 2
    assert shape(lambda: jd.LowRankSkew.random(30, key=KEY)).rank == 4
    assert shape(lambda: jd.BandedSkew.random(5, key=KEY, bandwidth=4)).bandwidth == 4
    assert jd.SparseSkew.random(20, key=KEY, degree=3).values.size == 30
    assert jd.SparseSkew.random(6, key=KEY, degree=5).values.size == 15
    with pytest.raises(ValueError, match="give `rows`"):
        eqx.filter_jit(jd.SparseSkew.random)(5, key=KEY)


def test_random_frames_are_uniform():
    """A Haar frame: each entry of W has mean 0; the mean square of w_ij is 2 / (n (n - 1))
    times the sum of the squared frequencies. 4000 draws, five standard errors."""
    omega = jnp.array([1.0, 2.0])

    @jax.jit
    @jax.vmap
    def draw(key):
        return jd.SpectralSkew.random(4, key=key, frequencies=omega).as_matrix()

    W = np.asarray(draw(jr.split(KEY, 4000)))[:, *np.tril_indices(4, -1)]
    np.testing.assert_allclose(W.mean(axis=0), 0, atol=5 * np.sqrt(5 / 6 / 4000))
    # Variance of w^2 is below that of a Gaussian, 2 (5/6)^2.
    np.testing.assert_allclose((W**2).mean(axis=0), 5 / 6, atol=5 * np.sqrt(2 / 4000) * 5 / 6)


def banded_matrix():
    return np.diag([1.0, 2.0, 3.0, 4.0], 1) - np.diag([1.0, 2.0, 3.0, 4.0], -1)


def example(cls):
    """A matrix of six units that `cls` holds."""
    rng = np.random.default_rng(3)
    W = np.tril(rng.normal(size=(6, 6)), -1)
    if cls is jd.BipartiteSkew:
        W[:2, :2] = W[2:, 2:] = 0
    elif cls is jd.BlockSkew:
        W *= np.diag([1, 0, 1, 0, 1], -1)
    elif cls is jd.BandedSkew:
        W = np.triu(W, -3)
    elif cls is jd.CirculantSkew:
        W = np.tril(scipy.linalg.circulant([0.0, 1.5, -0.4, 0.0, 0.4, -1.5]), -1)
    elif cls is jd.SparseSkew:
        W[np.abs(W) < 0.5] = 0
    elif cls is jd.LowRankSkew:
        u, v = rng.normal(size=(2, 6, 2))
        W = np.tril(u @ v.T - v @ u.T, -1)
    return W - W.T


@pytest.mark.core
@each_class
def test_from_matrix_inverts_as_matrix(cls):
    W = example(cls)
    back = cls.from_matrix(W).as_matrix()
    if cls in (jd.SpectralSkew, jd.LowRankSkew):  # through eigenvectors, n eps |W|
        np.testing.assert_allclose(back, W, atol=100 * EPS)
    else:
        np.testing.assert_array_equal(back, W)
    single = cls.from_matrix(W.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.as_matrix(), W, atol=5e-6)
    whole = (
        [[0, 3], [-3, 0]] if cls is not jd.CirculantSkew else [[0, -3, 3], [3, 0, -3], [-3, 3, 0]]
    )
    from_integers = cls.from_matrix(whole)
    assert from_integers.dtype == np.float64
    np.testing.assert_allclose(from_integers.as_matrix(), whole, atol=20 * EPS)


def test_from_matrix_takes_rounding():
    W = example(jd.DenseSkew)
    nudged = W.copy()
    nudged[0, 1] *= 1 + 2 * EPS
    got = jd.DenseSkew.from_matrix(nudged).as_matrix()
    np.testing.assert_array_equal(np.tril(got), np.tril(W))
    np.testing.assert_array_equal(got, -got.T)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("spread", ["degenerate", "graded", "tiny", "huge"])
def test_schur_form_of_hard_spectra(n, spread):
    """Equal, zero and widely spread frequencies; compared with W at the scale of each."""
    omega = {
        "degenerate": np.array([1.0, 1.0, 0.0, 1.0]),
        "graded": np.array([1.0, 1e-5, 1e-10, 1e-13]),
        "tiny": np.array([1e-300, 1e-303, 1e-300, 0.0]),
        "huge": np.array([1e300, 1e303, 1e300, 0.0]),
    }[spread][: n // 2]
    q, _ = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))
    blocks = np.zeros((n, n))
    for k, w in enumerate(omega):
        blocks[2 * k, 2 * k + 1], blocks[2 * k + 1, 2 * k] = w, -w
    W = q @ blocks @ q.T
    W = np.tril(W, -1) - np.tril(W, -1).T
    size = omega.max(initial=0.0)
    for cls in (jd.SpectralSkew, jd.LowRankSkew):
        op = cls.from_matrix(W)
        np.testing.assert_allclose(op.as_matrix(), W, rtol=0, atol=20 * n * EPS * size)
        np.testing.assert_allclose(op.frequencies(), np.sort(omega), atol=20 * n * EPS * size)


def test_from_matrix_infers_the_structure():
    assert jd.BandedSkew.from_matrix(banded_matrix()).bandwidth == 1
    assert jd.BandedSkew.from_matrix(banded_matrix(), bandwidth=3).bandwidth == 3
    wide = np.zeros((5, 5))
    wide[4, 0], wide[0, 4] = 1, -1
    assert jd.BandedSkew.from_matrix(wide).bandwidth == 4
    assert jd.SparseSkew.from_matrix(wide).values.size == 1
    assert jd.LowRankSkew.from_matrix(wide).rank == 1
    assert jd.LowRankSkew.from_matrix(wide, rank=3).rank == 3
    for p in (1, 2, 4):
        op = jd.BipartiteSkew(np.arange(1.0, 1 + p * (5 - p)).reshape(p, 5 - p))
        assert jd.BipartiteSkew.from_matrix(op.as_matrix()).coupling.shape == (p, 5 - p)
    assert jd.BipartiteSkew.from_matrix(wide).coupling.shape == (3, 2)
    assert jd.BipartiteSkew.from_matrix(wide, split=1).coupling.shape == (1, 4)
    one = np.zeros((1, 1))
    for cls in CLASSES:
        if cls is not jd.BlockSkew:
            op = cls.from_matrix(one)
            assert op.size == 1 and op.frequencies().shape == (0,)
            np.testing.assert_array_equal(op.mv(jnp.ones(1)), [0.0])
            np.testing.assert_allclose(np.abs(op.kernel()), [[1.0]])


@pytest.mark.parametrize(
    "matrix, error, message",
    [
        (np.ones((2, 3)), ValueError, r"`W` must be a square matrix .*\(2, 3\)"),
        (np.ones(4), ValueError, r"`W` must be a square matrix"),
        (np.zeros((0, 0)), ValueError, "no units"),
        (PAIR * (1 + 0j), TypeError, "real floating.*complex"),
        ("W", TypeError, "`W` must be real"),
        (None, TypeError, "`W` must be real"),
        ([[0, 1], [2]], TypeError, "`W` must be a square matrix, got list"),
        (PAIR * np.nan, ValueError, "NaN or infinite"),
        ([[0.0, np.inf], [-np.inf, 0.0]], ValueError, "NaN or infinite"),
        (np.eye(2), ValueError, r"max \|W \+ W\^T\| = 2, 2 of max \|W\|.*\(W - W.T\) / 2"),
        (np.abs(PAIR), ValueError, r"= 3, 2 of"),
        (PAIR + 1e-9, ValueError, r"= 2e-09, 1\.33e-09 of"),
    ],
)
@each_class
def test_from_matrix_refuses(cls, matrix, error, message):
    with pytest.raises(error, match=message):
        cls.from_matrix(matrix)


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda: jd.BlockSkew.from_matrix(banded_matrix()[:4, :4]), "up to 2, 0.667 of"),
        (lambda: jd.BlockSkew.from_matrix(banded_matrix()), "even number of units, got 5"),
        (lambda: jd.BandedSkew.from_matrix(np.tri(4, k=-1) - np.tri(4, k=-1).T, bandwidth=1),
         "zero beyond 1"),
        (lambda: jd.CirculantSkew.from_matrix(banded_matrix()), "i - j mod n"),
        (lambda: jd.BipartiteSkew.from_matrix(banded_matrix()), "BipartiteSkew .*DenseSkew"),
        (lambda: jd.BipartiteSkew.from_matrix(banded_matrix(), split=2), "blocks of 2 and 3"),
        (lambda: jd.LowRankSkew.from_matrix(banded_matrix(), rank=1), r"rank above 2 \* 1"),
        (lambda: jax.jit(lambda W: jd.DenseSkew.from_matrix(W).mv(W[0]))(PAIR), "call it outside"),
        (lambda: jax.grad(lambda W: jd.BlockSkew.from_matrix(W).omega[0])(PAIR), "call it outside"),
    ],
)  # fmt: skip
def test_from_matrix_refuses_another_structure(read, message):
    with pytest.raises(ValueError, match=message):
        read()


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(n=0), ValueError, "`n` must be at least"),
        (dict(n=1), ValueError, "`n` must be at least"),
        (dict(n=-4), ValueError, "`n` must be at least"),
        (dict(n=6.0), TypeError, "`n` must be a Python int"),
        (dict(n="6"), TypeError, "`n` must be a Python int"),
        (dict(n=True), TypeError, "`n` must be a Python int"),
        (dict(scale=-1.0), ValueError, "`scale` must be finite and >= 0"),
        (dict(scale=np.nan), ValueError, "`scale` must be finite and >= 0"),
        (dict(scale=jnp.inf), ValueError, "`scale` must be finite and >= 0"),
        (dict(key=None), TypeError, "`key` must be a JAX random key"),
        (dict(key=0), TypeError, "`key` must be a JAX random key"),
        (dict(dtype=int), TypeError, "`dtype` must be real floating"),
        (dict(dtype=complex), TypeError, "`dtype` must be real floating"),
    ],
)
@each_class
def test_random_refuses(cls, options, error, message):
    # The annotations, which tests check at run time, refuse some with their own TypeError.
    with pytest.raises((error, TypeError) if error is TypeError else error) as caught:
        cls.random(**dict(n=6, key=KEY) | options)
    assert error is TypeError or message.replace("\\", "") in str(caught.value)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: jd.DenseSkew(np.ones(4)), ValueError, "4 numbers.* 3 for n = 3 and 6 for n = 4"),
        (lambda: jd.DenseSkew(np.ones((2, 3))), ValueError, "`entries` must have 1 axes"),
        (lambda: jd.DenseSkew(np.ones(3) * 1j), TypeError, "`entries` must be real floating"),
        (lambda: jd.DenseSkew("abc"), TypeError, "`entries` must be an array"),
        (lambda: jd.DenseSkew(None), TypeError, "`entries` must be an array"),
        (lambda: jd.BipartiteSkew(np.ones(3)), ValueError, "`coupling` must have 2 axes"),
        (lambda: jd.BipartiteSkew(np.ones((0, 0))), ValueError, "no units"),
        (lambda: jd.BlockSkew([]), ValueError, "`omega` is empty"),
        (lambda: jd.BlockSkew.random(5, key=KEY), ValueError, "must be even"),
        (lambda: jd.BlockSkew.random(4, key=KEY, scale=1.0, frequencies=[1.0, 2.0]), ValueError,
         "not both"),
        (lambda: jd.SpectralSkew.random(4, key=KEY, frequencies=[1.0]), ValueError,
         r"`frequencies` must have shape \(2,\)"),
        (lambda: jd.SpectralSkew([1.0], np.ones((2, 5))), ValueError, "2 frequencies.* has 1"),
        (lambda: jd.SpectralSkew(jnp.ones(1, jnp.float32), np.ones((1, 2))), TypeError,
         "one precision"),
        (lambda: jd.LowRankSkew(np.ones((4, 1)), np.ones((4, 2))), ValueError, "one shape"),
        (lambda: jd.LowRankSkew(np.ones((4, 0)), np.ones((4, 0))), ValueError, "at least 1"),
        (lambda: jd.LowRankSkew(jnp.ones((2, 1), jnp.float32), np.ones((2, 1))), TypeError,
         "one precision"),
        (lambda: jd.LowRankSkew.random(6, key=KEY, rank=4), ValueError, "at most n // 2 = 3"),
        (lambda: jd.LowRankSkew.random(6, key=KEY, rank=0), ValueError, "`rank` must be at least"),
        (lambda: jd.LowRankSkew.from_matrix(PAIR, rank="1"), TypeError, "rank"),
        (lambda: jd.BandedSkew(np.ones(3)), TypeError, "`bands` must be a tuple"),
        (lambda: jd.BandedSkew(()), TypeError, "at least one array"),
        (lambda: jd.BandedSkew((np.ones(3), np.ones(3))), ValueError, r"got \[3, 3\] for n = 4"),
        (lambda: jd.BandedSkew((np.ones(1), np.ones(0))), ValueError, "n = 2 units have 1"),
        (lambda: jd.BandedSkew((np.ones(2), jnp.ones(1, jnp.float32))), TypeError, "all in one"),
        (lambda: jd.BandedSkew.random(4, key=KEY, bandwidth=4), ValueError, "between 1 and n - 1"),
        (lambda: jd.BandedSkew.from_matrix(PAIR, bandwidth="1"), TypeError, "bandwidth"),
        (lambda: jd.BipartiteSkew.random(4, key=KEY, split=4), ValueError, "between 1 and 3"),
        (lambda: jd.BipartiteSkew.from_matrix(PAIR, split=True), TypeError, "split"),
        (lambda: jd.CirculantSkew([1.0, 2.0], 4), ValueError, r"shape \(1,\) for a ring of 4"),
        (lambda: jd.CirculantSkew([], 0), ValueError, "`size` must be at least 1"),
        (lambda: jd.CirculantSkew.random(2, key=KEY), ValueError, "smaller ring"),
        (lambda: jd.SparseSkew([1.0, 2.0], [1], [0], 2), ValueError, "1 positions"),
        (lambda: jd.SparseSkew([1.0, 2.0], [1, 2], [0], 3), ValueError, "equally long"),
        (lambda: jd.SparseSkew([1.0], [0], [1], 3), ValueError, "0 <= col < row < size = 3"),
        (lambda: jd.SparseSkew([1.0], [3], [1], 3), ValueError, "0 <= col < row < size = 3"),
        (lambda: jd.SparseSkew([1.0], [1], [-1], 3), ValueError, "0 <= col < row < size = 3"),
        (lambda: jd.SparseSkew([1.0], [1], [1], 3), ValueError, "0 <= col < row < size = 3"),
        (lambda: jd.SparseSkew([1.0, 1.0], [2, 1], [0, 0], 3), ValueError, "lexsort"),
        (lambda: jd.SparseSkew([1.0, 1.0], [1, 1], [0, 0], 3), ValueError, "no position twice"),
        (lambda: jd.SparseSkew([1.0], [1.0], [0.0], 3), TypeError, "vector of integers"),
        (lambda: jd.SparseSkew.random(5, key=KEY, rows=[1]), ValueError, "together"),
        (lambda: jd.SparseSkew.random(5, key=KEY, degree=0), ValueError, "`degree` must be"),
        (lambda: jd.SparseSkew.random(5, key=KEY, degree=5), ValueError, "`degree` must be"),
    ],
)  # fmt: skip
def test_construction_refuses(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_products_refuse_what_is_no_vector():
    op = jd.BlockSkew([1.0, 2.0])
    for x in (jnp.ones(3), jnp.ones((4, 1)), jnp.ones((2, 4)), jnp.float64(1.0)):
        with pytest.raises(ValueError, match=r"`x` must have shape \(4,\)"):
            op.mv(x)
    for x in (jnp.arange(4), jnp.ones(4, complex)):
        with pytest.raises(ValueError, match="`x` must be real floating"):
            op.mv(x)
    np.testing.assert_array_equal(op.mv(np.arange(4.0)), [1.0, 0.0, 6.0, -4.0])
    with pytest.raises(ValueError, match=r"`g` must have shape \(2,\)"):
        op.color_mv(0, jnp.ones(3))
    with pytest.raises(ValueError, match="`c` must be one of the 2 classes"):
        op.color_mv(2, jnp.ones(2))


def test_double_precision_needs_x64():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="jax_enable_x64"):
            jd.DenseSkew.random(4, key=KEY, dtype=jnp.float64)
        op = jd.SpectralSkew.from_matrix(PAIR)
        assert op.dtype == np.float32
        np.testing.assert_allclose(op.as_matrix(), PAIR, rtol=1e-6)


def test_scale_may_be_traced():
    norms = jax.jit(jax.vmap(lambda s: jd.DenseSkew.random(3, key=KEY, scale=s).frequencies()[-1]))
    scales = jnp.array([0.5, 3.0])
    np.testing.assert_allclose(norms(scales), scales, rtol=1e-14)
