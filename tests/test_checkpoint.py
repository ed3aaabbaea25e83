"""Killed fits go on to the very numbers of undisturbed ones; foreign files are refused."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import jaxdyn as jd
from jaxdyn import initialisers as i
from jaxdyn import losses as l
from jaxdyn import signals as s
from jaxdyn._fingerprint import fingerprint
from jaxdyn._train.checkpoint import Checkpoint
from jaxdyn._train.stages import Record

SMALL = s.tones([1.0, 2.3], channels=2, n_samples=100, dt=0.2)
INIT = i.FrequenciesFirst(energy=(0.01, 0.1))
BOTH = {"steps": 150, "polish": 10, "validation": 0}
POLISH = {"polish": 15}


class Killed(Exception):
    pass


def fitted(path=None, signal=SMALL, **options):
    settings = {"units": 4, "restarts": 2, "init": INIT, "key": jr.key(0), "patience": 9}
    return jd.fit(signal, checkpoint=path, **{**settings, **options})


def killed(path, after, **options):
    """The rounds that a fit went through until it was killed in the callback of one of them."""
    rounds = []

    def callback(progress):
        rounds.append(progress)
        if len(rounds) == after:
            raise Killed

    with pytest.raises(Killed):
        fitted(path, callback=callback, **options)
    return rounds


def same(a, b):
    """Bit by bit, with all that was told on the way."""
    jax.tree.map(np.testing.assert_array_equal, a.oscillator, b.oscillator)
    assert a.history.stage == b.history.stage and a.best == b.best
    for x, y in (
        (a.losses, b.losses),
        (a.history.iteration, b.history.iteration),
        (a.history.loss, b.history.loss),
        (a.history.score, b.history.score),
    ):
        np.testing.assert_array_equal(x, y)
    apart = "seconds"
    assert {k: v for k, v in a.metrics.items() if k != apart} == {
        k: v for k, v in b.metrics.items() if k != apart
    }
    return True


@pytest.fixture(scope="module")
def both():
    return fitted(**BOTH)


@pytest.fixture(scope="module")
def polished():
    return fitted(**POLISH)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of a checkpoint in the middle of a fit."""
    path = tmp_path_factory.mktemp("checkpoint") / "fit.ckp"
    killed(path, 2, **POLISH)
    return path.read_bytes()


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_killed_in_descent_or_polish_and_resumed(both, tmp_path, after):
    path = tmp_path / "fit.ckp"
    rounds = killed(path, after, **BOTH)
    assert rounds[-1].stage == both.history.stage[after - 1] == ("descent", "polish")[after > 3]
    resumed = fitted(path, resume=True, **BOTH)
    assert same(resumed, both)
    # Resumed once more, from its last round, it is there at once.
    told = []
    assert same(fitted(path, resume=True, callback=told.append, **BOTH), both) and not told


def test_killed_in_refit_and_resumed(polished, tmp_path):
    path = tmp_path / "fit.ckp"
    first = polished.history.stage.index("refit")
    rounds = killed(path, first + 1, **POLISH)
    assert rounds[-1].stage == "refit"
    assert same(fitted(path, resume=True, **POLISH), polished)


def test_killed_twice(both, tmp_path):
    path = tmp_path / "fit.ckp"
    killed(path, 2, **BOTH)
    killed(path, 2, resume=True, **BOTH)
    assert same(fitted(path, resume=True, **BOTH), both)


def test_resume_without_a_file_starts_afresh(polished, tmp_path):
    path = tmp_path / "fit.ckp"
    assert same(fitted(path, resume=True, **POLISH), polished)
    assert path.exists() and list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_not_overwritten(tmp_path, written):
    path = tmp_path / "fit.ckp"
    for content in (written, b"my thesis"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"`checkpoint` .*exists; pass resume=True"):
            fitted(path, **POLISH)
        assert path.read_bytes() == content


def test_damaged_files_are_refused(tmp_path, written):
    """Each byte of the head, some of the rest, all lengths."""
    rng = np.random.default_rng(0)
    path = tmp_path / "fit.ckp"
    store = Checkpoint(path, "task")
    flips = [*range(60), *rng.integers(60, len(written), 100).tolist()]
    for at in flips:
        content = bytearray(written)
        content[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"`checkpoint` .*(damaged|no checkpoint)"):
            store.read()
    for length in [*range(0, 60), *rng.integers(60, len(written), 40).tolist()]:
        path.write_bytes(written[:length])
        with pytest.raises(ValueError, match=r"`checkpoint` .*(damaged|no checkpoint)"):
            store.read()
    path.write_bytes(written + b"\0")
    with pytest.raises(ValueError, match=r"damaged: its checksum fails\. Delete it"):
        store.read()


def test_a_foreign_file_is_refused_and_kept(tmp_path, written):
    path = tmp_path / "fit.ckp"
    for content, message in (
        (b"my thesis", "is no checkpoint of a fit; give another name"),
        (b"", "is no checkpoint"),
        (written[:-1], "is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            fitted(path, resume=True, **POLISH)
        assert path.read_bytes() == content
    SMALL_MODEL = jd.Oscillator(
        jnp.ones(2), jd.PoissonCell(jd.DenseSkew.random(2, key=jr.key(0)), jd.Tanh())
    )
    path = tmp_path / "model.eqx"
    SMALL_MODEL.save(path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        fitted(path, resume=True, **POLISH)


@pytest.mark.parametrize(
    "other",
    [
        {"key": jr.key(1)},
        {"ridge": 1e-11},
        {"polish": 20},
        {"units": 5},
        {"restarts": 3},
        {"loss": l.MultiHorizon()},
        {"init": i.FrequenciesFirst(energy=(0.01, 0.2))},
        {"init": i.FrequenciesFirst(energy=(0.01, 0.1), activation=jd.Arctan())},
        {"holdout": 21},
        {"weights": np.full(100, 2.0)},
        {"shell": 0.1},
        {"solver": jd.RK4()},
        {"project": False},
        {"signal": s.tones([1.0, 2.3], channels=2, n_samples=100, dt=0.2000001)},
        {"signal": s.tones([1.0, 2.3], channels=2, n_samples=100, amplitude=1.0000001, dt=0.2)},
        {"signal": SMALL.drop(0.01, key=jr.key(0))},
    ],
    ids=lambda other: next(iter(other)),
)
def test_the_checkpoint_of_another_fit_is_refused(tmp_path, written, other):
    path = tmp_path / "fit.ckp"
    path.write_bytes(written)
    with pytest.raises(ValueError, match="belongs to another fit: another signal, key, setting"):
        fitted(path, resume=True, **{**POLISH, **other})
    assert path.read_bytes() == written


def test_another_optimiser_is_refused(tmp_path):
    """It is made of functions, which have no digest; its state has a shape."""
    path = tmp_path / "fit.ckp"
    killed(path, 1, **BOTH)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"does not hold the state of this fit \(another optim"):
        fitted(path, resume=True, **{**BOTH, "optimiser": optax.sgd(0.1)})
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", ["missing/fit.ckp", "file/fit.ckp", "."])
def test_a_place_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        fitted(tmp_path / where, **POLISH)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "fit.ckp"
    store, record = Checkpoint(path, "task"), Record(2)
    store.write(0, np.arange(2), record, np.ones(3))
    content = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        store.write(0, np.arange(2), record, np.zeros(3))
    assert error.value.filename == str(path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_read(tmp_path):
    record = Record(2)
    record.add("descent", 50, np.array([1]), np.array([0.5]), np.array([0.25]))
    store = Checkpoint(tmp_path / "fit.ckp", "task")
    assert store.read() is None
    state = {"a": jnp.arange(3.0), "b": np.array(7), "c": (None, jnp.ones((2, 2), jnp.float32))}
    store.write(1, np.array([1]), record, state)
    saved = store.read()
    assert saved.stage == 1 and saved.members.tolist() == [1]
    assert saved.record.history().stage == ("descent",)
    np.testing.assert_array_equal(saved.record.losses, [[np.nan, 0.5]])
    back = saved.restored(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert isinstance(back["b"], np.ndarray) and back["c"][1].dtype == np.float32
    with pytest.raises(ValueError, match="does not hold the state of this fit"):
        store.read().restored({"a": jnp.arange(4.0)})
    with pytest.raises(ValueError, match="another fit"):
        Checkpoint(tmp_path / "fit.ckp", "other").read()


def test_fingerprints_differ_where_what_is_asked_does():
    parts = [
        (np.arange(3.0),),
        (np.arange(3),),
        (np.arange(3.0)[:, None],),
        (np.arange(3.0), None),
        ([np.arange(3.0)],),
        (1,),
        (1.0,),
        (True,),
        ("1",),
        (jd.Tanh(),),
        (jd.Arctan(),),
        (l.Huber(delta=0.1),),
        (l.Huber(delta=0.2),),
    ]
    digests = [fingerprint(*part) for part in parts]
    assert len(set(digests)) == len(digests)
    assert digests == [fingerprint(*part) for part in parts]


def test_no_checkpoint_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Checkpoint(None, "task")
    store.write(0, np.arange(2), Record(2), np.ones(3))
    assert store.read() is None and not list(tmp_path.iterdir())


def test_where_a_function_lies_in_memory_is_no_part_of_a_fit():
    def activation():
        def fn(x):
            return 2 * jnp.tanh(x)

        return jd.FunctionActivation(fn)

    first, second = activation(), activation()
    assert repr(jax.tree.structure(first)) != repr(jax.tree.structure(second))
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(jd.Tanh())
