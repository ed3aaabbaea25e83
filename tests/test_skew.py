"""Skew operators as lineax operators: products, transformations, solves."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg

import jaxdyn as jd
from jaxdyn._skew import FormedSkew

N = 8


def entries(*shapes):
    rng = np.random.default_rng(5)
    return [rng.normal(size=shape) / 3 for shape in shapes]


BUILD = {
    "dense": lambda: jd.DenseSkew(*entries(28)),
    "bipartite": lambda: jd.BipartiteSkew(*entries((3, 5))),
    "block": lambda: jd.BlockSkew(*entries(4)),
    "spectral": lambda: jd.SpectralSkew(*entries(4, (5, N))),
    "low_rank": lambda: jd.LowRankSkew(*entries((N, 2), (N, 2))),
    "banded": lambda: jd.BandedSkew(entries(7, 6)),
    "tridiagonal": lambda: jd.BandedSkew(entries(7)),
    "circulant": lambda: jd.CirculantSkew(*entries(3), N),
    "sparse": lambda: jd.SparseSkew(*entries(6), [1, 3, 4, 6, 7, 7], [0, 1, 0, 5, 2, 3], N),
    # One unit coupled to all others: too uneven for gathers.
    "scattered": lambda: jd.SparseSkew(*entries(79), range(1, 80), [0] * 79, 80),
    "formed": lambda: FormedSkew.from_matrix(jd.DenseSkew(*entries(28)).as_matrix()),
}
every = pytest.mark.parametrize("name", BUILD)
each_class = pytest.mark.parametrize(
    "name", [k for k in BUILD if k not in ("tridiagonal", "scattered", "formed")]
)

# Rounding of a product of a few dozen terms of size 1, in units of eps.
ULPS = 40


@functools.cache
def built(name):
    """The operator, its matrix in numpy, and a vector."""
    op = BUILD[name]()
    x = jnp.asarray(np.random.default_rng(6).normal(size=op.size))
    return op, np.asarray(jax.jit(lambda op: op.as_matrix())(op)), x


def close(a, b, dtype=np.float64, ulps=ULPS):
    np.testing.assert_allclose(a, b, rtol=0, atol=ulps * np.finfo(dtype).eps)


def householder(vectors):
    Q = np.eye(vectors.shape[1])
    for v in np.asarray(vectors):
        Q = Q @ (np.eye(v.size) - 2 * np.outer(v, v) / (v @ v))
    return Q


def definition(op):
    """W written out from the free entries, independently of the package."""
    n = op.size
    W = np.zeros((n, n))
    match op:
        case jd.DenseSkew():
            W[np.tril_indices(n, -1)] = op.entries
        case jd.BipartiteSkew():
            p = op.coupling.shape[0]
            W[p:, :p] = -op.coupling.T
        case jd.BlockSkew():
            for k, w in enumerate(op.omega):
                W[2 * k + 1, 2 * k] = -w
        case jd.SpectralSkew():
            Q = householder(op.vectors)
            blocks = definition(jd.BlockSkew(op.omega))
            W[: len(blocks), : len(blocks)] = blocks
            return Q @ W @ Q.T
        case jd.LowRankSkew():
            return np.asarray(op.left @ op.right.T - op.right @ op.left.T)
        case jd.BandedSkew():
            for k, band in enumerate(op.bands, start=1):
                W += np.diag(np.asarray(band), -k)
        case jd.CirculantSkew():
            c = np.zeros(n)
            half = (n - 1) // 2
            c[1 : half + 1] = op.entries
            c[n - half :] = -op.entries[::-1]
            return scipy.linalg.circulant(c)
        case jd.SparseSkew():
            for v, i, j in zip(op.values, op.rows, op.cols, strict=True):
                W[i, j] = v
        case _:
            return np.asarray(op.matrix)
    return W - W.T


@pytest.mark.core
@every
def test_products_are_those_of_the_definition(name):
    op, W, x = built(name)
    X = jnp.asarray(np.random.default_rng(7).normal(size=(3, op.size)))

    @eqx.filter_jit
    def products(op, x, X):
        # Batches of rows, and of columns as `simulate` has them.
        columns = jax.vmap(op.mv, in_axes=1, out_axes=1)(X.T)
        return op.mv(x), op.T.mv(x), jax.vmap(op.mv)(X), columns, lx.materialise(op).mv(x)

    one, minus, rows, columns, formed = products(op, x, X)
    close(W, definition(op))
    np.testing.assert_array_equal(W, -W.T)
    np.testing.assert_array_equal(np.diagonal(W), 0)
    close(one, W @ x)
    close(minus, -one)
    close(rows, np.asarray(X) @ W.T)
    close(columns, W @ np.asarray(X.T))
    close(formed, W @ x)
    assert abs(x @ one) < ULPS * np.finfo(np.float64).eps * (x @ x)
    assert op.size == op.in_size() == op.out_size() == len(W)
    assert op.in_structure() == op.out_structure() == jax.ShapeDtypeStruct(x.shape, x.dtype)


def test_two_units_are_the_pair_of_the_closed_forms():
    for op in (jd.BlockSkew([1.7]), jd.BipartiteSkew([[1.7]]), jd.DenseSkew([-1.7])):
        np.testing.assert_array_equal(op.as_matrix(), [[0, 1.7], [-1.7, 0]])


@every
def test_transpose_is_minus_itself(name):
    op, W, _ = built(name)
    assert type(op.T) is type(op)
    once, twice = jax.jit(lambda op: (op.T.as_matrix(), op.T.T.as_matrix()))(op)
    np.testing.assert_array_equal(once, -W)
    np.testing.assert_array_equal(twice, W)


@pytest.mark.core
@every
def test_derivatives_keep_it_skew(name):
    """Along entries and along x they are W's own; a step of gradient descent leaves W skew."""
    op, W, x = built(name)
    target = jnp.ones_like(x)

    @eqx.filter_jit
    def derivatives(op, x):
        loss = eqx.filter_value_and_grad(lambda op: jnp.sum((op.mv(x) - target) ** 2))
        value, slope = loss(op)
        stepped = jax.tree.map(lambda a, b: a - 1e-3 * b, op, slope)
        _, along_op = eqx.filter_jvp(lambda op: op.mv(x), (op,), (op,))
        _, along_x = jax.jvp(op.mv, (x,), (target,))
        transposed = jax.linear_transpose(op.mv, x)(x)[0]
        return slope, value, loss(stepped)[0], stepped.as_matrix(), along_op, along_x, transposed

    slope, before, after, matrix, along_op, along_x, transposed = derivatives(op, x)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    if name != "formed":  # its leaf is all of W: trained, it need not stay skew
        np.testing.assert_array_equal(matrix, -matrix.T)
        assert np.abs(matrix - W).max() > 1e-5
    assert after < before
    # The derivative along the entries themselves is W x, twice that where W is bilinear in them,
    # and for spectral too: of degree 1 in the frequencies and 0 in the vectors.
    close(along_op, (2 if name == "low_rank" else 1) * (W @ x))
    close(along_x, W @ np.ones_like(x))
    close(transposed, -W @ x)


@each_class
def test_precision_follows_the_vector(name):
    wide, _, x64 = built(name)
    op, x = jax.tree.map(lambda a: a.astype(jnp.float32), (wide, x64))
    assert op.dtype == jnp.float32 and wide.dtype == jnp.float64
    g = x[op.coloring()[0]]

    @jax.jit
    def products(op, wide):
        return op.mv(x), op.as_matrix(), op.mv(x64), wide.mv(x), wide.color_mv(0, g)

    y, W, up, down, part = products(op, wide)
    assert [a.dtype for a in (up, down, part)] == [jnp.float64, jnp.float32, jnp.float32]
    np.testing.assert_array_equal(W, -W.T)
    close(y, np.asarray(W, np.float64) @ np.asarray(x), np.float32)
    assert jax.eval_shape(type(op).frequencies, op).dtype == jnp.float32


@pytest.mark.core
@pytest.mark.parametrize("name", ["dense", "block", "tridiagonal", "circulant", "sparse"])
def test_linear_solve(name):
    """1 - h W and its compositions through lineax's own operators."""
    op, W, x = built(name)
    eye, h = np.eye(op.size), 0.3
    d = np.linspace(0.5, 1.0, op.size)

    @eqx.filter_jit
    def solve(op, x):
        identity = lx.IdentityLinearOperator(op.in_structure())
        scaled = op @ lx.DiagonalLinearOperator(jnp.asarray(d))
        # The Cayley map (1 - h W)^-1 (1 + h W) is orthogonal.
        cayley = lx.linear_solve(identity - op * h, (identity + op * h).mv(x)).value
        composed = lx.linear_solve(identity - h * scaled, x).value
        sums = [op + op.T, -op, op / 2 - 3.0 * op, op @ op.T]
        return cayley, composed, [(a.as_matrix(), a.mv(x)) for a in sums]

    cayley, composed, sums = solve(op, x)
    np.testing.assert_allclose(cayley, np.linalg.solve(eye - h * W, (eye + h * W) @ x), atol=1e-14)
    np.testing.assert_allclose(jnp.linalg.norm(cayley), jnp.linalg.norm(x), rtol=1e-14)
    np.testing.assert_allclose(composed, np.linalg.solve(eye - h * W * d, x), atol=1e-14)
    for (matrix, product), want in zip(sums, (0 * W, -W, -2.5 * W, W @ W.T), strict=True):
        close(matrix, want)
        close(product, want @ x)


@pytest.mark.parametrize("name", ["dense", "block"])
def test_gradient_through_a_solve(name):
    """The Cayley map keeps |x| whatever W is, so the derivative of its length vanishes."""
    op, _, x = built(name)

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def slope(op):
        identity = lx.IdentityLinearOperator(op.in_structure())
        y = lx.linear_solve(identity - op * 0.3, (identity + op * 0.3).mv(x)).value
        return jnp.sum(y**2), y

    slopes, y = slope(op)
    assert jnp.linalg.norm(y - x) > 0.1
    np.testing.assert_allclose(jax.tree.leaves(slopes)[0], 0, atol=1e-13)


@every
def test_lineax_functions(name):
    op, W, _ = built(name)
    assert lx.linearise(op) is op
    assert lx.conj(op) is op
    diagonal, three = jax.jit(lambda op: (lx.diagonal(op), lx.tridiagonal(op)))(op)
    np.testing.assert_array_equal(diagonal, np.diagonal(W))
    for ours, k in zip(three, (0, -1, 1), strict=True):
        np.testing.assert_array_equal(ours, np.diagonal(W, k))
    assert lx.is_tridiagonal(op) == (name in ("block", "tridiagonal"))
    for check in (
        lx.is_symmetric,
        lx.is_diagonal,
        lx.has_unit_diagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.is_positive_semidefinite,
        lx.is_negative_semidefinite,
    ):
        assert check(op) is False


def test_tridiagonal_solver_is_kept_from_mixed_types():
    """lineax 0.1.1 gives an identity's diagonals the default type: float32 goes through LU."""
    with jax.numpy_dtype_promotion("standard"):
        for op in (
            jd.BlockSkew(jnp.asarray([1.0, 2.0], jnp.float32)),
            jd.BandedSkew((jnp.asarray([1.0, 2.0, 0.5], jnp.float32),)),
        ):
            assert not lx.is_tridiagonal(op)
            x = jnp.ones(op.size, jnp.float32)
            y = lx.linear_solve(lx.IdentityLinearOperator(op.in_structure()) - op, x).value
            want = np.linalg.solve(np.eye(op.size) - op.as_matrix(), x)
            np.testing.assert_allclose(y, want, rtol=1e-6)


@every
def test_classes_act_on_the_others(name):
    """color_mv is W[:, class] @ g, for an operator and for the matrix it is made into."""
    op, W, _ = built(name)
    formed = lx.materialise(op)
    units = np.arange(op.size)
    for ours, theirs in zip(formed.coloring(), op.coloring(), strict=True):
        np.testing.assert_array_equal(units[ours], units[theirs])
    pulses = [jnp.cos(1.0 + units[members]) for members in op.coloring()[:4]]

    @jax.jit
    def effects(op, formed):
        return [[a.color_mv(c, g) for c, g in enumerate(pulses)] for a in (op, formed)]

    for each in effects(op, formed):
        for g, members, effect in zip(pulses, op.coloring(), each, strict=False):
            close(effect, W[:, members] @ g)


def test_large_or_thin_operators_are_not_formed():
    path = np.arange(99)
    for op in (
        jd.BipartiteSkew(np.ones((5, 5))),
        jd.BlockSkew(np.ones(5)),
        jd.LowRankSkew(np.ones((40, 3)), np.ones((40, 3))),
        jd.BandedSkew((np.ones(39), np.ones(38))),
        jd.CirculantSkew(np.ones(150), 301),
        jd.SparseSkew(np.ones(99), path + 1, path, 100),
    ):
        assert lx.materialise(op) is op
    for op in (jd.DenseSkew(np.ones(3)), jd.SpectralSkew(np.ones(2), np.ones((1, 5)))):
        assert isinstance(lx.materialise(op), FormedSkew)


def test_equal_patterns_share_one_compilation():
    traces = []

    @eqx.filter_jit
    def apply(op, x):
        traces.append(op)
        return op.mv(x)

    x = jnp.ones(N)
    sparse = BUILD["sparse"]()
    for op in (sparse, jd.SparseSkew(-sparse.values, sparse.rows, sparse.cols, N)):
        apply(op, x)
        apply(lx.materialise(op), x)
    assert len(traces) == 2
    apply(jd.SparseSkew([1.0], [4], [1], N), x)
    assert len(traces) == 3
