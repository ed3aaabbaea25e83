"""Points of rest: cells against closed forms, other fields against textbook equilibria."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import jaxdyn as jd
from jaxdyn._analysis.fixed_points import fixed_points
from jaxdyn._analysis.rest import _Monotone

W3 = np.array([[0.0, 1.3, -0.7], [-1.3, 0.0, 0.4], [0.7, -0.4, 0.0]])
AXIS = np.array([-W3[1, 2], W3[0, 2], -W3[0, 1]])


def skew(*frequencies, n, seed=0):
    """A dense W with these frequencies, and a kernel of the rest."""
    core = np.zeros((n, n))
    for k, w in enumerate(frequencies):
        core[2 * k, 2 * k + 1], core[2 * k + 1, 2 * k] = w, -w
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    w = q @ core @ q.T
    return jd.DenseSkew.from_matrix((w - w.T) / 2)


def starts(b, n, scale=3.0):
    return scale * jr.normal(jr.key(7), (b, n))


def jacobian(field, x, args=None):
    return np.asarray(jax.jacfwd(lambda x: field(0.0, x, args))(x))


def same_spectrum(got, want, tol):
    got, want = np.asarray(got), list(np.asarray(want, complex))
    for value in got:
        k = int(np.argmin(np.abs(np.asarray(want) - value)))
        assert abs(want.pop(k) - value) < tol
    assert not want


@pytest.mark.core
def test_three_tanh_units():
    cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W3), jd.Tanh())
    out = fixed_points(cell)
    assert out.kind == "continuum" and out.types == ("centre",)
    np.testing.assert_allclose(out.points, np.zeros((1, 3)), atol=1e-14)
    want = jd.equilibrium_frequency(W3, 0.0)
    np.testing.assert_allclose(out.eigenvalues.imag[0], [-want, 0, want], atol=1e-14)
    assert not out.eigenvalues.real.any()
    np.testing.assert_allclose(np.cross(out.directions[0], AXIS), np.zeros(3), atol=1e-14)


@pytest.mark.parametrize("l", [0.3, -0.6])
def test_search_on_the_family_of_three_tanh_units(l):
    cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W3), jd.Tanh())
    x = np.arctanh(l * AXIS)
    out = fixed_points(cell.__call__, x[None])
    assert out.kind == "search" and out.types == ("non-hyperbolic",)
    np.testing.assert_allclose(out.points, x[None], atol=1e-12)
    want = jd.equilibrium_frequency(W3, l)
    np.testing.assert_allclose(out.eigenvalues.imag[0], [-want, 0, want], atol=1e-12)


def test_three_tanh_units_with_a_bias():
    s = np.tanh([0.4, -1.1, 0.8])
    cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W3), jd.Tanh(), bias=-W3 @ s)
    out = fixed_points(cell)
    x = np.asarray(out.points[0])
    assert out.kind == "continuum" and out.types == ("centre",)
    assert float(out.residual[0]) < 1e-15
    assert abs(x @ AXIS) < 1e-14
    offset = np.tanh(x) - s
    np.testing.assert_allclose(np.cross(offset, AXIS), np.zeros(3), atol=1e-14)
    d = 1 - np.tanh(x) ** 2
    want = np.sqrt(AXIS**2 @ (np.prod(d) / d))
    np.testing.assert_allclose(out.eigenvalues.imag[0], [-want, 0, want], atol=1e-14)
    tangent = d * np.asarray(out.directions[0])
    np.testing.assert_allclose(np.cross(tangent, AXIS), np.zeros(3), atol=1e-14)


@pytest.mark.parametrize("n", [2, 6])
def test_regular_matrix(n):
    W = jd.DenseSkew.random(n, key=jr.key(n))
    rest = fixed_points(jd.PoissonCell(W, jd.Tanh()))
    assert rest.kind == "point" and not rest.points.any() and rest.types == ("centre",)
    np.testing.assert_allclose(rest.eigenvalues.imag[0, n // 2 :], W.frequencies(), rtol=1e-12)

    x = np.linspace(-1.5, 2.0, n)
    cell = jd.PoissonCell(W, jd.Tanh(), bias=-W.mv(jnp.tanh(x)))
    out = fixed_points(cell)
    np.testing.assert_allclose(out.points[0], x, atol=1e-12)
    same_spectrum(out.eigenvalues[0], np.linalg.eigvals(jacobian(cell, jnp.asarray(x))), 1e-12)
    assert out.types == ("centre",) and out.directions.shape == (0, n)

    far = jd.PoissonCell(W, jd.Tanh(), bias=W.mv(jnp.full(n, 1.01)))
    none = fixed_points(far)
    assert none.kind == "none" and "range of Tanh" in none.note
    assert none.points.shape == (0, n) and none.eigenvalues.shape == (0, n) and none.types == ()


def test_kernel_decides_on_a_bias():
    W = jd.DenseSkew.random(5, key=jr.key(3))
    (c,) = np.asarray(W.kernel())
    inside = W.mv(0.3 * jr.normal(jr.key(4), (5,)))
    assert fixed_points(jd.PoissonCell(W, jd.Tanh(), bias=inside)).kind == "continuum"
    out = fixed_points(jd.PoissonCell(W, jd.Tanh(), bias=inside + 1e-3 * c))
    assert out.kind == "none" and "balanced by nothing" in out.note
    loose = fixed_points(jd.PoissonCell(W, jd.Tanh(), bias=inside + 1e-3 * c), tol=0.1)
    assert loose.kind == "continuum"
    # The shortest s reaches 2 in a unit that c cannot help: it is orthogonal to c.
    r = np.eye(5)[0] - c[0] * c
    big = jd.PoissonCell(W, jd.Tanh(), bias=W.mv(jnp.asarray(40 * r)))
    out = fixed_points(big)
    assert out.kind == "none" and "s_p + N c" in out.note


def test_continuum_whose_shortest_s_is_out_of_range():
    # s_p leaves the range, s_p + N c does not.
    c = np.ones(3) / np.sqrt(3)
    W = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    s = np.array([0.1, 0.5, 0.2])
    for activation in (jd.Sigmoid(), jd.Softplus()):
        cell = jd.PoissonCell(jd.DenseSkew.from_matrix(W), activation, bias=-W @ s)
        assert np.min(s - (s @ c) * c) < 0
        out = fixed_points(cell)
        assert out.kind == "continuum" and float(out.residual[0]) < 1e-15
        assert abs(float(out.points[0] @ c)) < 1e-14


@pytest.mark.parametrize("room", [1e-6, 1e-12])
def test_continuum_with_little_room(room):
    W = skew(0.8, 1.7, n=5, seed=1)
    s = jnp.asarray([1 - room, room - 1, 0.3, 0.0, 0.5])
    out = fixed_points(jd.PoissonCell(W, jd.Tanh(), bias=-W.mv(s)))
    assert out.kind == "continuum" and float(out.residual[0]) < 1e-14


def test_kernel_of_two_dimensions():
    W = skew(0.8, 1.7, n=6)
    s = np.tanh(np.linspace(-1, 1.4, 6))
    cell = jd.PoissonCell(W, jd.Tanh(), bias=-W.mv(jnp.asarray(s)))
    out = fixed_points(cell)
    kernel = np.asarray(W.kernel())
    x = np.asarray(out.points[0])
    assert out.kind == "continuum" and out.directions.shape == (2, 6)
    assert out.types == ("centre",) and float(out.residual[0]) < 1e-14
    np.testing.assert_allclose(kernel @ x, np.zeros(2), atol=1e-13)
    rest = np.tanh(x) - s
    np.testing.assert_allclose(rest, kernel.T @ (kernel @ rest), atol=1e-13)
    J = jacobian(cell, out.points[0])
    np.testing.assert_allclose(J @ np.asarray(out.directions).T, np.zeros((6, 2)), atol=1e-13)
    np.testing.assert_allclose(out.directions @ out.directions.T, np.eye(2), atol=1e-14)
    same_spectrum(out.eigenvalues[0], np.linalg.eigvals(J), 1e-7)


def test_antisymmetric_cell():
    W = jd.DenseSkew.random(4, key=jr.key(5))
    b = jnp.asarray([0.3, -2.0, 0.5, 1.0])
    cell = jd.AntisymmetricCell(W, jd.Tanh(), bias=b)
    out = fixed_points(cell)
    assert out.kind == "point" and out.types == ("centre",)
    np.testing.assert_allclose(out.points[0], np.linalg.solve(W.as_matrix(), -b), atol=1e-12)
    np.testing.assert_allclose(out.eigenvalues.imag[0, 2:], W.frequencies(), rtol=1e-12)

    odd = jd.DenseSkew.from_matrix(W3)
    family = fixed_points(jd.AntisymmetricCell(odd, jd.ELU(), bias=W3 @ np.arange(3.0)))
    assert family.kind == "continuum" and float(family.residual[0]) < 1e-14
    np.testing.assert_allclose(family.points @ AXIS, [0.0], atol=1e-14)
    np.testing.assert_allclose(W3 @ np.asarray(family.directions[0]), np.zeros(3), atol=1e-14)
    assert fixed_points(jd.AntisymmetricCell(odd, jd.Tanh(), bias=AXIS)).kind == "none"
    none = fixed_points(jd.AntisymmetricCell(W, jd.Sigmoid()))
    assert none.kind == "none" and "no zero" in none.note

    damped = fixed_points(jd.AntisymmetricCell(odd, jd.Tanh(), bias=AXIS, damping=0.5))
    want = np.linalg.solve(W3 - 0.5 * np.eye(3), -AXIS)
    np.testing.assert_allclose(damped.points[0], want, atol=1e-14)
    assert damped.types == ("stable focus",)


def test_damping():
    W = jd.DenseSkew.random(5, key=jr.key(6))
    gamma = np.array([0.1, 0.4, 0.2, 0.3, 0.5])
    x = np.array([0.5, -1.0, 0.2, 1.5, -0.3])
    A = np.asarray(W.as_matrix()) - np.diag(gamma)
    cell = jd.PoissonCell(W, jd.Tanh(), bias=-A @ np.tanh(x), damping=gamma)
    out = fixed_points(cell)
    assert out.kind == "point" and out.types == ("stable focus",)
    np.testing.assert_allclose(out.points[0], x, atol=1e-13)
    same_spectrum(out.eigenvalues[0], np.linalg.eigvals(jacobian(cell, jnp.asarray(x))), 1e-12)
    pumped = fixed_points(jd.PoissonCell(W, jd.Tanh(), damping=-0.1))
    assert pumped.types == ("unstable focus",)
    strong = jd.PoissonCell(jd.DenseSkew.from_matrix(np.zeros((2, 2))), jd.Tanh(), damping=2.0)
    assert fixed_points(strong).types == ("stable node",)
    # Damping that leaves a pair at rest alone.
    pair = np.zeros((4, 4))
    pair[0, 1], pair[1, 0] = 1.0, -1.0
    half = jd.PoissonCell(jd.DenseSkew.from_matrix(pair), jd.Tanh(), damping=[0.1, 0.1, 0.0, 0.0])
    out = fixed_points(half)
    assert out.kind == "continuum" and out.types == ("stable focus",)


def test_input():
    W = jd.DenseSkew.random(4, key=jr.key(8))
    U = jnp.eye(4)[:, :2]
    cell = jd.PoissonCell(W, jd.Identity(), input_matrix=U)
    out = fixed_points(cell, args=jnp.asarray([0.5, -1.0]))
    want = np.linalg.solve(W.as_matrix(), -U @ jnp.asarray([0.5, -1.0]))
    np.testing.assert_allclose(out.points[0], want, atol=1e-12)
    with pytest.raises(ValueError, match="`args`"):
        fixed_points(cell)
    with pytest.raises(ValueError, match="`args` must be a constant"):
        fixed_points(cell, args=lambda t: jnp.ones(2))


@pytest.mark.parametrize(
    ("activation", "inverse"),
    [
        (jd.Identity(), lambda s: s),
        (jd.Tanh(), np.arctanh),
        (jd.Arctan(), np.tan),
        (jd.Softsign(), lambda s: s / (1 - np.abs(s))),
        (jd.ELU(0.9), lambda s: np.where(s < 0, np.log1p(np.minimum(s, 0) / 0.9), s)),
        (jd.AsymmetricTanh(), lambda s: np.where(s < 0, 2 * np.arctanh(s / 3), np.arctanh(s))),
        (jd.ISRU(0.7), lambda s: s / np.sqrt(1 - 0.7 * s**2)),
        (jd.LeakyReLU(0.2), lambda s: np.where(s < 0, s / 0.2, s)),
        (jd.Sigmoid(), lambda s: np.log(s) - np.log1p(-s)),
        (jd.Softplus(), lambda s: np.log(np.expm1(s))),
    ],
    ids=lambda v: type(v).__name__,
)
def test_inversion(activation, inverse):
    s = np.concatenate([np.linspace(-0.85, 0.85, 40), [1e-9, -1e-9, 0.0]])
    if isinstance(activation, jd.Sigmoid | jd.Softplus):
        s = np.concatenate([np.linspace(0.01, 0.9, 40), [1e-9]])
    tool = _Monotone(activation, np.dtype(np.float64))
    assert tool.increasing and tool.inside(s)
    np.testing.assert_allclose(tool.inverse(s), inverse(s), rtol=1e-12, atol=1e-16)


def test_activation_that_is_flat_or_falls():
    W = jd.DenseSkew.random(4, key=jr.key(9))
    for activation in (jd.ReLU(), jd.RectifiedTanh()):
        with pytest.raises(ValueError, match=r"`starts` must be given.*flat"):
            fixed_points(jd.PoissonCell(W, activation))
        x = jnp.asarray([0.2, 0.5, 0.1, 0.9])
        out = fixed_points(jd.PoissonCell(W, activation, bias=-W.mv(activation(x))))
        assert out.kind == "point"
        np.testing.assert_allclose(out.points[0], x, atol=1e-12)
        out = fixed_points(jd.PoissonCell(W, activation, bias=W.mv(x)))
        assert out.kind == "none"
    flat = fixed_points(jd.PoissonCell(W, jd.ReLU()), -1 - jnp.ones((1, 4)))
    assert flat.kind == "search" and flat.types == ("non-hyperbolic",)
    assert fixed_points(jd.PoissonCell(W, jd.HardTanh())).kind == "point"

    hump = jd.FunctionActivation(lambda z: z / (1 + z * z) ** 2)
    with pytest.raises(ValueError, match="falls somewhere"):
        fixed_points(jd.PoissonCell(W, hump, bias=W.mv(jnp.full(4, 0.1))))
    # s(x) = .1 at two x for each of four units: 16 points.
    out = fixed_points(jd.PoissonCell(W, hump, bias=-W.mv(jnp.full(4, 0.1))), starts(400, 4, 1.5))
    assert out.kind == "search" and 1 < len(out.types) <= 16
    np.testing.assert_allclose(hump(out.points), np.full((len(out.types), 4), 0.1), atol=1e-9)


def test_regulator():
    shell = jd.EnergyShell(1.5, 0.2)
    W = jd.DenseSkew.random(4, key=jr.key(10))
    cell = jd.PoissonCell(W, jd.Tanh(), regulator=shell)
    out = fixed_points(cell)
    assert out.kind == "point" and not out.points.any() and out.types == ("unstable focus",)
    want = 0.3 + 1j * np.concatenate([-W.frequencies()[::-1], W.frequencies()])
    same_spectrum(out.eigenvalues[0], want, 1e-13)
    odd = jd.PoissonCell(jd.DenseSkew.from_matrix(W3), jd.Tanh(), regulator=shell)
    with pytest.raises(ValueError, match=r"`starts` must be given.*singular W"):
        fixed_points(odd)
    found = fixed_points(odd, starts(20, 3))
    assert found.kind == "search" and len(found.types) == 3
    assert sorted(found.types) == ["non-hyperbolic", "non-hyperbolic", "unstable focus"]
    for x in found.points:
        at_rest = float(jnp.max(jnp.abs(x))) < 1e-9
        assert at_rest or abs(float(odd.energy(x)) - 1.5) < 1e-9
        np.testing.assert_allclose(np.cross(np.tanh(x), AXIS), np.zeros(3), atol=1e-9)


@pytest.mark.parametrize(("mu", "name"), [(1.0, "focus"), (3.0, "node")])
def test_van_der_pol(mu, name):
    def field(t, x, mu):
        return jnp.stack([x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]])

    for sign, stability in ((1, "unstable"), (-1, "stable")):
        out = fixed_points(field, starts(50, 2, 1.0), args=sign * mu)
        assert out.kind == "search" and out.types == (f"{stability} {name}",)
        np.testing.assert_allclose(out.points, np.zeros((1, 2)), atol=1e-12)
        same_spectrum(out.eigenvalues[0], np.roots([1, -sign * mu, 1]), 1e-12)


def test_double_well():
    def field(t, x, args):
        return jnp.stack([x[1], x[0] - x[0] ** 3 - 0.2 * x[1]])

    out = fixed_points(field, starts(60, 2))
    order = np.argsort(out.points[:, 0])
    np.testing.assert_allclose(out.points[order], [[-1, 0], [0, 0], [1, 0]], atol=1e-12)
    assert [out.types[i] for i in order] == ["stable focus", "saddle", "stable focus"]
    for i, product in zip(order, (2, -1, 2), strict=True):
        same_spectrum(out.eigenvalues[i], np.roots([1, 0.2, product]), 1e-12)
    assert 3 < out.converged_starts <= 60
    assert float(jnp.max(out.residual)) < 1e-10


def test_lorenz():
    sigma, beta, rho = 10.0, 8 / 3, 28.0

    def field(t, x, args):
        a, b, c = x
        return jnp.stack([sigma * (b - a), a * (rho - c) - b, a * b - beta * c])

    out = fixed_points(field, starts(60, 3, 20.0))
    order = np.argsort(out.points[:, 0])
    q = np.sqrt(beta * (rho - 1))
    want = [[-q, -q, rho - 1], [0, 0, 0], [q, q, rho - 1]]
    np.testing.assert_allclose(out.points[order], want, atol=1e-12)
    assert [out.types[i] for i in order] == ["saddle-focus", "saddle", "saddle-focus"]
    wing = np.roots([1, sigma + beta + 1, beta * (sigma + rho), 2 * sigma * beta * (rho - 1)])
    origin = [-beta, *np.roots([1, sigma + 1, sigma * (1 - rho)])]
    for i, roots in zip(order, (wing, origin, wing), strict=True):
        same_spectrum(out.eigenvalues[i], roots, 1e-11)


def test_search_that_finds_nothing_or_one():
    def never(t, x, args):
        return 1 + x**2

    out = fixed_points(never, starts(10, 2))
    assert out.kind == "search" and out.converged_starts == 0
    assert out.points.shape == (0, 2) and "0 of 10" in out.note
    once = fixed_points(lambda t, x, args: -x, starts(10, 2))
    assert once.converged_starts == 10 and once.points.shape == (1, 2)
    assert once.types == ("stable node",)
    assert fixed_points(lambda t, x, args: -(x**3), starts(10, 2)).points.shape == (1, 2)


def test_single_precision():
    W = jd.DenseSkew.random(5, key=jr.key(11), dtype=jnp.float32)
    x = jnp.asarray([0.5, -1.0, 0.2, 1.5, -0.3], jnp.float32)
    cell = jd.PoissonCell(W, jd.Tanh(), bias=-W.mv(jnp.tanh(x)))
    out = fixed_points(cell)
    assert out.kind == "continuum" and out.points.dtype == jnp.float32
    assert out.eigenvalues.dtype == jnp.complex64 and float(out.residual[0]) < 1e-6
    assert out.types == ("centre",)
    grid = jnp.linspace(-2, 2, 9, dtype=jnp.float32)[:, None]
    well = fixed_points(lambda t, x, args: x - x**3, grid)
    assert well.points.dtype == jnp.float32 and len(well.types) == 3


def test_bad_input():
    cell = jd.PoissonCell(jd.DenseSkew.random(4, key=jr.key(0)), jd.Tanh())

    def field(t, x, args):
        return -x

    with pytest.raises(TypeError, match="`field` must be"):
        fixed_points(3.0)
    with pytest.raises(TypeError, match="`field` must be"):
        fixed_points(jd.PoissonCell)
    with pytest.raises(ValueError, match="`starts` must be given"):
        fixed_points(field)
    for wrong in (jnp.ones(4), jnp.ones((2, 3)), jnp.ones((0, 4))):
        with pytest.raises(ValueError, match=r"`starts` must have shape \(b, 4\)"):
            fixed_points(cell, wrong)
    with pytest.raises(ValueError, match="`starts` must be finite"):
        fixed_points(field, jnp.asarray([[jnp.nan, 1.0]]))
    with pytest.raises(TypeError, match="`starts`"):
        fixed_points(field, "here")
    with pytest.raises(ValueError, match=r"`field` must return x' of shape \(2,\)"):
        fixed_points(lambda t, x, args: x[:1], jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="`field` must take"):
        fixed_points(lambda x: x, jnp.ones((1, 2)))
    for tol in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`tol`"):
            fixed_points(field, jnp.ones((1, 2)), tol=tol)
    with pytest.raises(ValueError, match="`args`"):
        fixed_points(cell, args=jnp.ones(2))
    with pytest.raises(ValueError, match="must be concrete"):
        jax.jit(lambda x: fixed_points(field, x).points)(jnp.ones((1, 2)))
