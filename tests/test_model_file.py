"""Files of modules: exact round trips, and nothing that a file holds is trusted."""

import errno
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdyn as jd
from jaxdyn._model_file import load_module, register, save_module
from jaxdyn._solver import AbstractCellSolver

KEY = jr.key(3)
X = jnp.linspace(-1.0, 1.2, 6)
DTYPES = [jnp.float32, jnp.float64]


def operators(dtype):
    makers = {
        jd.BandedSkew: dict(bandwidth=2),
        jd.CirculantSkew: {},
        jd.DenseSkew: {},
        jd.BipartiteSkew: {},
        jd.BlockSkew: {},
        jd.LowRankSkew: {},
        jd.SparseSkew: {},
        jd.SpectralSkew: {},
    }
    made = [cls.random(6, key=KEY, dtype=dtype, **how) for cls, how in makers.items()]
    formed = [lx.materialise(made[0]), lx.materialise(made[2])]  # with a colouring and without
    assert [type(op).__name__ for op in formed] == ["FormedSkew"] * 2
    return made + formed


ACTIVATIONS = [
    jd.Tanh(),
    jd.Identity(),
    jd.Arctan(),
    jd.Erf(),
    jd.ISRU(1 / 3),
    jd.Sigmoid(),
    jd.Softplus(),
    jd.Softsign(),
    jd.HardTanh(),
    jd.AsymmetricTanh(0.1, 1 / 7),
    jd.ELU(0.6),
    jd.LeakyReLU(1e-300),
    jd.RectifiedTanh(),
    jd.ReLU(),
]
SOLVERS = [
    jd.Strang(),
    jd.Strang(grid=2.0**-36),
    jd.Yoshida4(),
    jd.Suzuki4(),
    jd.BlanesMoan4(grid=1.0),
    jd.Yoshida6(),
    jd.DiscreteGradient(),
    jd.ImplicitMidpoint(),
    jd.ExactLinear(),
    jd.RK4(),
    jd.Taylor(11),
]
SPARSE = jd.SparseSkew.random(6, key=KEY, degree=1.5)
W = jd.DenseSkew.random(6, key=KEY)
SHELL = jd.EnergyShell(2.0, 0.5, keep=SPARSE.kernel())
CELLS = [
    jd.PoissonCell(W, jd.Tanh()),
    jd.PoissonCell(SPARSE, jd.ISRU(2.0), bias=X, damping=0.1, regulator=SHELL),
    jd.PoissonCell(W, jd.Tanh(), input_matrix=np.ones((6, 2)), damping=X),
    jd.AntisymmetricCell(W, jd.Softsign(), bias=X, damping=0.3),
]
EVERY = [*operators(jnp.float32), *operators(jnp.float64), *ACTIVATIONS, *SOLVERS, *CELLS, SHELL]


def cubic(x):
    return x + x**3


class Mine(eqx.Module):
    """Someone's own function, with parameters."""

    a: jax.Array
    b: float
    name: str = eqx.field(static=True)

    def __call__(self, x):
        return jnp.asarray(self.a, x.dtype) * x + jnp.asarray(self.b, x.dtype) * x**3


class Holder(eqx.Module):
    """A class of ours that other tests would not know."""

    value: object
    fixed: object = eqx.field(static=True, default=None)


register(Holder)


def mine(a=2.0, b=0.5):
    fn = jd.FunctionActivation(Mine(jnp.asarray(2.0, float), 0.5, "mine"))
    a = jnp.asarray(a, float) if isinstance(a, float) else a
    return jd.PoissonCell(W, eqx.tree_at(lambda act: (act.fn.a, act.fn.b), fn, (a, b)))


def kept(tmp_path, module, **how):
    save_module(tmp_path / "a.eqx", module)
    return load_module(tmp_path / "a.eqx", **how)


def assert_same(a, b):
    """Bit by bit, with equal types and an equal key of jit's cache."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert hash(jax.tree.structure(a)) == hash(jax.tree.structure(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if eqx.is_array(x):
            assert jax.typeof(x) == jax.typeof(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("module", EVERY, ids=lambda m: type(m).__name__)
def test_round_trip(tmp_path, module):
    loaded = kept(tmp_path, module)
    assert type(loaded) is type(module)
    assert_same(loaded, module)
    for name, value in vars(module).items():
        assert type(getattr(loaded, name)) is type(value)
    if isinstance(module, jd.AbstractSkewOperator):
        x = X.astype(module.dtype)
        assert np.array_equal(loaded.mv(x), module.mv(x))
        for a, b in zip(loaded.coloring(), module.coloring(), strict=True):
            assert np.array_equal(np.arange(6)[a], np.arange(6)[b])
    if isinstance(module, jd.AbstractActivation):
        assert np.array_equal(loaded(X), module(X))
        assert np.array_equal(loaded.potential(X), module.potential(X))


def test_every_class_has_a_round_trip():
    kinds = (jd.AbstractSkewOperator, jd.AbstractActivation, jd.AbstractCell, AbstractCellSolver)
    public = {
        value
        for name, value in ((name, getattr(jd, name)) for name in dir(jd))
        if isinstance(value, type) and issubclass(value, kinds) and not name.startswith("Abstract")
    }
    assert len(public) == 35
    assert public - {type(module) for module in EVERY} == {jd.FunctionActivation}


@pytest.mark.parametrize("cell", CELLS)
def test_a_loaded_cell_is_the_same_to_jit(tmp_path, cell):
    traces = []

    @eqx.filter_jit
    def field(cell, x, u):
        traces.append(1)
        return cell(0.0, x, u)

    u = None if cell.input_matrix is None else jnp.ones(2)
    before = field(cell, X, u)
    assert np.array_equal(field(kept(tmp_path, cell), X, u), before)
    assert len(traces) == 1


def test_literals_and_arrays(tmp_path):
    rng = np.random.default_rng(0)
    fixed = (1, 1.0, True, None, "ü\ud800\n", -0.0, float("inf"), -float("inf"), 5e-324, 2**80)
    fixed += (1e22, (), ("a", (2,)), 0.1 + 0.2, 3 - 4j, complex(-0.0, float("inf")))
    value = {
        "z": [jnp.zeros((0, 3)), np.asfortranarray(rng.random((2, 3))), np.float32(0.1)],
        "a": {(2, "x"): (), (1, "y"): []},
        "k": [jnp.arange(3, dtype=kind) for kind in ("int8", "uint32", "bfloat16", "float16")],
        "b": [
            jnp.asarray([True, False]),
            np.asarray(1j),
            jnp.asarray(np.nan, float),
            0.1,
            False,
            7,
        ],
        "e": jnp.zeros(0),
    }
    loaded = kept(tmp_path, Holder(value, fixed))
    assert_same(loaded, Holder(value, fixed))
    assert list(loaded.value) == list(value)
    assert repr(loaded.fixed) == repr(fixed)
    nan = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    assert struct.pack(">d", kept(tmp_path, Holder(nan)).value).hex() == "fff8000000000123"


@pytest.mark.parametrize("dtype", DTYPES)
def test_stacked_modules(tmp_path, dtype):
    """They cannot be called without vmap, which is no damage."""

    def make(key):
        return jd.PoissonCell(jd.BandedSkew.random(4, key=key, dtype=dtype), jd.Tanh())

    cells = eqx.filter_vmap(make)(jr.split(KEY, 3))
    assert_same(kept(tmp_path, cells), cells)


def test_strictness_of_jax_does_not_matter(tmp_path):
    W = jd.BlockSkew(jnp.ones(2, jnp.float32))
    shell = jd.EnergyShell(jnp.asarray(1.0, jnp.float64), 1.0)
    with jax.numpy_dtype_promotion("standard"):
        save_module(tmp_path / "a.eqx", jd.PoissonCell(W, jd.Tanh(), regulator=shell))
    with jax.numpy_dtype_promotion("strict"):
        assert load_module(tmp_path / "a.eqx").size == 4


def test_a_large_operator_is_not_written_out(tmp_path):
    op = jd.SparseSkew(jnp.ones(1), [1], [0], 10**9)
    cell = jd.PoissonCell(op, jd.Tanh(), damping=0.1)
    tracemalloc.start()
    assert_same(kept(tmp_path, cell), cell)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    header, payload = parts(written(tmp_path, cell))
    header["module"]["fields"]["operator"]["fields"]["pattern"]["fields"]["size"] = 10**30
    refuses(tmp_path, forged(header, payload), "is damaged")
    op = jd.SparseSkew(jnp.ones(1), [1], [0], 2000)
    header, payload = parts(written(tmp_path, jd.PoissonCell(op, jd.Tanh(), bias=jnp.ones(2000))))
    header["module"]["fields"]["operator"]["fields"]["pattern"]["fields"]["size"] = 2001
    refuses(tmp_path, forged(header, payload), "the parts of module do not fit together")


def test_64_bit_types_off(tmp_path):
    save_module(tmp_path / "a.eqx", W)
    save_module(tmp_path / "b.eqx", EVERY[0])
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"float64 numbers at module.entries.*jax_enable_x64"):
            load_module(tmp_path / "a.eqx")
        assert_same(load_module(tmp_path / "b.eqx"), EVERY[0])


def test_expect(tmp_path):
    save_module(tmp_path / "a.eqx", CELLS[0])
    for fits in (jd.PoissonCell, jd.AbstractCell, (jd.Tanh, jd.PoissonCell), eqx.Module):
        load_module(tmp_path / "a.eqx", expect=fits)
    with pytest.raises(ValueError, match=r"holds a PoissonCell, not an EnergyShell or a Tanh;"):
        load_module(tmp_path / "a.eqx", expect=(jd.EnergyShell, jd.Tanh))
    for wrong in ("PoissonCell", (jd.Tanh, 3)):
        with pytest.raises(TypeError, match="`expect` must be a class"):
            load_module(tmp_path / "a.eqx", expect=wrong)


# Of the user's own.


def test_a_function_needs_like(tmp_path):
    cell = jd.PoissonCell(W, jd.FunctionActivation(cubic, limit=5.0), bias=X)
    save_module(tmp_path / "a.eqx", cell)
    with pytest.raises(ValueError, match=r"needs `like`: module.activation.fn is '.*cubic'"):
        load_module(tmp_path / "a.eqx")
    like = jd.PoissonCell(jd.DenseSkew(jnp.zeros(1)), cell.activation, bias=jnp.zeros(2))
    assert_same(load_module(tmp_path / "a.eqx", like=like), cell)


def test_parameters_of_a_function(tmp_path):
    cell = mine()
    loaded = kept(tmp_path, cell, like=mine(7.0, 3.0))
    assert_same(loaded, cell)
    assert np.array_equal(loaded(0.0, X, None), cell(0.0, X, None))
    shapes = eqx.filter_eval_shape(lambda: cell)
    assert_same(load_module(tmp_path / "a.eqx", like=shapes), cell)


def test_a_class_of_ones_own(tmp_path):
    saved = Mine(jnp.arange(3.0), 0.25, "mine")
    assert_same(kept(tmp_path, saved, like=Mine(jnp.zeros(3), 1.0, "mine")), saved)
    # A name of ours does not make it ours.
    Tanh = type("Tanh", (Mine,), {})
    with pytest.raises(ValueError, match="needs `like`"):
        kept(tmp_path, Tanh(jnp.zeros(3), 1.0, "mine"))


@pytest.mark.parametrize(
    ("like", "where"),
    [
        (mine(jnp.ones(3)), "activation.fn.a"),
        (mine(jnp.asarray(2.0, jnp.float32)), "activation.fn.a"),
        (mine(b=jnp.asarray(2.0, float)), "activation.fn.b"),
        (CELLS[0], "activation"),
        (jd.PoissonCell(W, jd.FunctionActivation(cubic)), "activation.fn"),
        (CELLS[3], "module"),
    ],
)
def test_like_that_does_not_fit(tmp_path, like, where):
    with pytest.raises(ValueError, match=rf"`like` does not fit .*{where}.* build `like`"):
        kept(tmp_path, mine(), like=like)
    with pytest.raises(TypeError, match="`like` must be a module"):
        load_module(tmp_path / "a.eqx", like=3)


def test_like_of_other_containers(tmp_path):
    save_module(tmp_path / "a.eqx", Holder([{"f": cubic}, (cubic,)]))
    for like in ([{"f": abs}], ({"f": abs}, (abs,)), [{"f": abs, "g": 1}, (abs,)], [3, (abs,)]):
        with pytest.raises(ValueError, match="`like` does not fit"):
            load_module(tmp_path / "a.eqx", like=Holder(like))
    loaded = load_module(tmp_path / "a.eqx", like=Holder([{"f": abs}, (cubic,)]))
    assert loaded.value == [{"f": abs}, (cubic,)]


# What cannot be saved.


def test_refused_on_save(tmp_path):
    path = tmp_path / "a.eqx"
    save_module(path, W)
    before = path.read_bytes()
    deep = 0
    for _ in range(80):
        deep = (deep,)
    for module, error, message in [
        (Holder(jr.key(0)), TypeError, r"typed random key at module.value.*key_data"),
        (Holder(np.asarray(["a"])), TypeError, r"dtype <U1 at module.value"),
        (Holder([np.asarray([None])]), TypeError, r"dtype object at module.value\[0\]"),
        (Holder(np.ma.masked_array([1.0])), TypeError, "MaskedArray"),
        (Holder(deep), ValueError, "nested more than"),
        (Holder(("x" * 2**20,) * 17), ValueError, "bytes of structure"),
        ("W", TypeError, "`module` must be an equinox module"),
    ]:
        with pytest.raises(error, match=message):
            save_module(path, module)
    with pytest.raises(ValueError, match=r"no values yet at module.entries.*outside of jit"):
        jax.jit(lambda W: save_module(path, W))(W)
    for wrong in (3, None, b"a.eqx"):
        with pytest.raises(TypeError, match="`path` must be"):
            save_module(wrong, W)
        with pytest.raises(TypeError, match="`path` must be"):
            load_module(wrong)
    with pytest.raises(ValueError, match="a second Tanh"):
        register(type("Tanh", (Mine,), {}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.eqx"]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.eqx"
    save_module(path, W)
    before = path.read_bytes()
    opened = os.fdopen

    class Full(io.FileIO):
        written = 0

        def write(self, data):
            self.written += len(data)
            if self.written > 300:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def full(handle, mode="r", **how):
        if "w" not in mode:
            return opened(handle, mode, **how)
        return Full(handle, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(OSError, match="No space left") as caught:
            save_module(path, CELLS[1])
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.eqx"]


def test_paths(tmp_path):
    save_module(str(tmp_path / "noextension"), W)
    assert os.listdir(tmp_path) == ["noextension"]
    assert_same(load_module(str(tmp_path / "noextension")), W)
    with pytest.raises(FileNotFoundError, match=r"nothing\.eqx"):
        load_module(tmp_path / "nothing.eqx")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        load_module(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        save_module(tmp_path / "nowhere" / "a.eqx", W)


# What a file can do.

SMALL = jd.PoissonCell(jd.CirculantSkew(jnp.asarray([0.5]), 3), jd.ISRU(2.0), bias=np.ones(3))


def written(tmp_path, module):
    save_module(tmp_path / "good.eqx", module)
    return (tmp_path / "good.eqx").read_bytes()


def parts(data):
    length = int.from_bytes(data[44:48], "little")
    return json.loads(data[56 : 56 + length]), data[56 + length :]


def forged(header, payload, *, version=1, length=None, total=None, about=None):
    """A file with right checksums, whatever is in it. Not by way of our own code."""
    if isinstance(header, dict):
        header["payload"] = about or {
            "length": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        header = json.dumps(header).encode()
    size = 56 + len(header) + len(payload)
    length = len(header) if length is None else length
    rest = struct.pack("<IIQ", version, length, size if total is None else total)
    rest += header + payload
    return b"\x89JAXDYN\n" + hashlib.sha256(rest).digest() + rest


def refuses(tmp_path, data, match):
    path = tmp_path / "bad.eqx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match) as caught:
        load_module(path)
    assert str(path) in str(caught.value)


def test_a_forged_file_with_nothing_wrong_loads(tmp_path):
    data = written(tmp_path, SMALL)
    (tmp_path / "a.eqx").write_bytes(forged(*parts(data)))
    assert_same(load_module(tmp_path / "a.eqx"), SMALL)


def test_equinox_reads_the_payload(tmp_path):
    payload = parts(written(tmp_path, SMALL))[1]
    leaves = eqx.tree_deserialise_leaves(io.BytesIO(payload), jax.tree.leaves(SMALL))
    assert_same(leaves, jax.tree.leaves(SMALL))


def test_one_flipped_bit(tmp_path):
    data = written(tmp_path, SMALL)
    for i in range(len(data)):
        for bit in range(8) if i < 64 else [i % 8]:
            flipped = bytearray(data)
            flipped[i] ^= 1 << bit
            refuses(
                tmp_path, flipped, "is not a module saved by" if i < 8 else "is damaged: .*anew"
            )


def test_every_length(tmp_path):
    data = written(tmp_path, SMALL)
    for n in range(len(data)):
        refuses(tmp_path, data[:n], "is not a module saved by" if n < 8 else "is damaged: .*anew")
    for more in (b"\0", b"\n", data):
        refuses(tmp_path, data + more, "is damaged: it has .* bytes and should have")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(99), pickle.dumps([1] * 99)])
def test_another_kind_of_file(tmp_path, data):
    refuses(tmp_path, data, "is not a module saved by jaxdyn, it .*; give a file")


def test_newer_and_unknown(tmp_path):
    header, payload = parts(written(tmp_path, SMALL))
    refuses(tmp_path, forged(header, payload, version=2), "by a newer jaxdyn.*upgrade")
    refuses(tmp_path, forged(header, payload, version=0), "damaged: there is no format 0")
    for name in ("os.system", "Oscillator2", "eval", "Module", "AbstractCell"):
        header["module"]["class"] = name
        refuses(tmp_path, forged(header, payload), f"'{name}' at module, a class that .* upgrade")


def changed(change):
    def make(header, payload):
        out = change(header, payload)
        return header, payload if out is None else out

    return make


def at(*path, to):
    def make(header, payload):
        place = header
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        return header, payload

    return make


BIAS = ("module", "fields", "bias")
OPERATOR = ("module", "fields", "operator")
DEEP = "[" * 10**6
NPY = b"\x93NUMPY\x01\x00v\x00"


def npy(text):
    return NPY + text.encode().ljust(117) + b"\n"


def instead(old, new):
    return lambda header, payload: (header, payload.replace(old, new))


def object_array(header, payload):
    stream = io.BytesIO()
    np.save(stream, np.asarray([print, None, None]), allow_pickle=True)
    return header, payload[: payload.rindex(b"\x93NUMPY")] + stream.getvalue()


FORGED = {
    "no entries": lambda h, p: ({}, p),
    "not JSON": lambda h, p: (b"{", p),
    "not UTF-8": lambda h, p: (b'"\xff"', p),
    "a bare constant": at(*BIAS, to=float("nan")),
    "deep JSON": lambda h, p: (DEEP.encode(), p),
    "deep records": at("module", to=json.loads('{"list":[' * 90 + "1" + "]}" * 90)),
    "a number of 5000 digits": lambda h, p: (b"9" * 5000, p),
    "another format": at("format", to=2),
    "no module": at("module", to=3),
    "a list": at("module", to=[]),
    "an unknown kind": at(*BIAS, to={"pickle": "gASV"}),
    "too few fields": at("module", "fields", to={}),
    "one more field": at("module", "fields", "__class__", to=1),
    "one more field of a part": at("module", "fields", "activation", "fields", "more", to=1),
    "a field of another kind": at("module", "fields", "activation", to=1),
    "a field of another class": at(*OPERATOR, to={"class": "Tanh", "fields": {}, "runs": True}),
    "another size": at(*OPERATOR, "fields", "size", to=9),
    "a huge size": at(*OPERATOR, "fields", "size", to=10**30),
    "a size in text": at(*OPERATOR, "fields", "size", to="3"),
    "another array": at(*BIAS, "array", to=0),
    "a negative shape": at(*BIAS, "shape", to=[-1]),
    "a true shape": at(*BIAS, "shape", to=[True]),
    "a shape in text": at(*BIAS, "shape", to=["3"]),
    "a huge shape": at(*BIAS, "shape", to=[2**40]),
    "a huge empty shape": at(*BIAS, "shape", to=[0, 2**47, 2**47]),
    "many axes": at(*BIAS, "shape", to=[1] * 99),
    "another shape": at(*BIAS, "shape", to=[1]),
    "another dtype": at(*BIAS, "dtype", to="float32"),
    "no dtype": at(*BIAS, "dtype", to="O"),
    "no library": at(*BIAS, "as", to="torch"),
    "an array too few": at(*BIAS, to=None),
    "objects": object_array,
    "objects announced": instead(b"'<f8', 'fortran_order': False, 'shape': (3,", b"'|O8', "
    b"'fortran_order': False, 'shape': (3,"),
    "a huge array": instead(b"(3,), }            ", b"(3000000000000,), }"),
    "columns first": instead(b"False", b"True "),
    "a version 2 of NPY": instead(b"NUMPY\x01", b"NUMPY\x02"),
    "a long NPY header": instead(b"v\x00{", b"\xff\xff{"),
    "an array cut short": lambda h, p: (h, p[:-1]),
    "bytes of no array": lambda h, p: (h, p + b"\0"),
    "no payload": lambda h, p: (h, b""),
}  # fmt: skip


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_forged(tmp_path, forge):
    data = forged(*forge(*parts(written(tmp_path, SMALL))))
    tracemalloc.start()
    refuses(tmp_path, data, "is damaged: .*anew")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    "lie",
    [
        dict(length=2**32 - 1),
        dict(length=2**24),
        dict(length=2**24 + 1),
        dict(length=3),
        dict(total=2**63),
        dict(about={"length": 2**60, "sha256": ""}),
        dict(about={"length": 3}),
        dict(about=[1]),
    ],
)
def test_lengths_that_lie(tmp_path, lie):
    data = forged(*parts(written(tmp_path, SMALL)), **lie)
    tracemalloc.start()
    refuses(tmp_path, data, "is damaged: .*anew")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("module", "path", "to"),
    [
        (SPARSE, ("pattern", "fields", "size"), 2),
        (SPARSE, ("pattern", "fields", "size"), 10**30),
        (SPARSE, ("pattern", "fields", "rows"), (1, 2)),
        (lx.materialise(SPARSE), ("classes", "fields", "classes"), {"tuple": [1]}),
        (lx.materialise(SPARSE), ("classes", "fields", "classes"), {"tuple": [{"slice": [1]}]}),
        (lx.materialise(SPARSE), ("classes", "fields", "classes"), 1),
        (jd.Strang(), ("grid",), 0.3),
        (Holder({}), ("value",), {"dict": [[{"list": []}, 1]]}),
        (Holder({}), ("value",), {"dict": [[{"tuple": [{"list": []}]}, 1]]}),
        (Holder({}), ("value",), {"dict": [1]}),
        (Holder(1.0), ("value",), {"float": "7ff"}),
        (Holder(1.0), ("value",), {"complex": ["a", 1]}),
        (Holder(1.0), ("value",), {"slice": ["a", 1, 2]}),
        (Holder(1.0), ("value",), {"slice": [1, 2]}),
    ],
)
def test_forged_structure(tmp_path, module, path, to):
    header, payload = parts(written(tmp_path, module))
    header, payload = at("module", "fields", *path, to=to)(header, payload)
    refuses(tmp_path, forged(header, payload), "is damaged: .*anew")


def test_bools_are_bools(tmp_path):
    header, payload = parts(written(tmp_path, Holder(np.asarray([True]))))
    refuses(tmp_path, forged(header, payload[:-1] + b"\2"), "is damaged: .*no bool")


def test_forged_leaves_of_a_function(tmp_path):
    header, payload = parts(written(tmp_path, mine()))
    record = header["module"]["fields"]["activation"]["fields"]["fn"]
    assert record["foreign"].endswith("Mine")
    path = tmp_path / "bad.eqx"
    right = record["leaves"]
    for leaves in ([1], [[1, 2]], [["a"]], [*right, 1], [*right, [".c", 1]], right[::-1], []):
        forgery = json.loads(json.dumps(header))
        forgery["module"]["fields"]["activation"]["fields"]["fn"]["leaves"] = leaves
        path.write_bytes(forged(forgery, payload))
        with pytest.raises(ValueError, match=r"is damaged|does not fit"):
            load_module(path, like=mine())


@pytest.fixture(scope="module")
def heard():
    """Lists that are put in here grow by what the interpreter does, until they are taken out."""
    listeners = []
    # There is no way to remove a hook.
    sys.addaudithook(
        lambda event, args: [seen.append((event, args)) for seen in listeners] and None
    )
    return listeners


def test_nothing_is_run_or_imported(tmp_path, heard):
    header, payload = parts(written(tmp_path, SMALL))
    files = [forged(*forge(*parts(written(tmp_path, SMALL)))) for forge in FORGED.values()]
    for name in ("os.system", "subprocess.Popen", "antigravity", "builtins.exec"):
        header["module"]["class"] = name
        files.append(forged(header, payload))
        header["module"] = {"foreign": name, "leaves": []}
        files.append(forged(header, payload))
        header["module"] = {"class": name, "fields": {"command": "true"}, "runs": True}
        files.append(forged(header, payload))
    files += [pickle.dumps(print), written(tmp_path, mine()), written(tmp_path, SMALL)]

    def load_all():
        loaded = 0
        for i in range(len(files)):
            try:
                load_module(tmp_path / f"{i}.eqx")
                loaded += 1
            except ValueError:
                pass
        return loaded

    for i, data in enumerate(files):
        (tmp_path / f"{i}.eqx").write_bytes(data)
    assert load_all() == 1  # and JAX has imported what it imports late
    seen = []
    heard.append(seen)
    load_all()
    heard.clear()
    opened = {args[0] for event, args in seen if event == "open"}
    assert opened == {str(tmp_path / f"{i}.eqx") for i in range(len(files))}
    harmless = ("open", "object.__getattr__", "object.__setattr__", "sys._getframe", "id")
    found = [(event, args) for event, args in seen if event not in harmless]
    # The type checker of the tests compiles and runs a signature for each call that it checks.
    compiled = [args[0] for event, args in found if event == "compile"]
    assert all(bytes(source).startswith(b"def inner(") for source in compiled)
    assert sum(event == "exec" for event, _ in found) == len(compiled)
    assert {event for event, _ in found} <= {"builtins.id", "compile", "exec"}


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_change_loads_or_is_refused(tmp_path_factory, data):
    """Behind right checksums too: an error of ours, or a module."""
    folder = tmp_path_factory.getbasetemp()
    module = data.draw(st.sampled_from([SMALL, SPARSE, lx.materialise(SPARSE), Holder({"a": 1.5})]))
    whole = written(folder, module)
    length = int.from_bytes(whole[44:48], "little")
    header, payload = bytearray(whole[56 : 56 + length]), whole[56 + length :]
    start = header.index(b'"module"')
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(start, len(header) - 1))
        header[place] = data.draw(st.sampled_from(b'0123456789{}[]":,.-eE\\ truefalsn\x00\xff'))
    (folder / "bad.eqx").write_bytes(forged(bytes(header), payload))
    try:
        assert isinstance(load_module(folder / "bad.eqx"), eqx.Module)
    except ValueError as error:
        assert "bad.eqx" in str(error)


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_payload_loads_or_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    header, payload = parts(written(folder, SPARSE))
    payload = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "bad.eqx").write_bytes(forged(header, bytes(payload)))
    try:
        assert isinstance(load_module(folder / "bad.eqx"), jd.SparseSkew)
    except ValueError as error:
        assert "bad.eqx" in str(error)
