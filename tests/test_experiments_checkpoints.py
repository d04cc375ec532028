"""Checkpoints: what is written is read back, and what is damaged is found out."""

import errno
import resource
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import spherical_optax as so
from experiments.checkpoints import Checkpoints, digest
from experiments.errors import CheckpointError, UsageError
from experiments.orbax_io import reason


def make_tree(seed=0):
    """What a run has: named tuples, empty states, types, scalars."""
    rng = np.random.default_rng(seed)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 500)))}}
    optimizer = optax.chain(
        optax.clip(1.0), optax.masked(optax.adam(1e-3), {"conv": {"kernel": True}})
    )
    return {
        "params": params,
        "opt_state": optimizer.init(params),
        "half": jnp.asarray(rng.normal(size=4), jnp.bfloat16),
        "key": jax.random.key_data(jax.random.key(seed)),
        "step": jnp.asarray(seed, jnp.int32),
    }


def accept(facts):
    pass


@pytest.fixture
def folder(tmp_path):
    """With the checkpoints of steps 1, 2 and 3, of which the newest two are kept."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        checkpoints.save(step, make_tree(step), {"loss": [0.1 * step, float("inf")]})
    checkpoints.wait()
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(folder, like=None, refuse=accept):
    warnings = []
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(like or make_tree(), refuse, warnings.append)
    checkpoints.close()
    return found, warnings


def test_newest_is_read_back_to_the_last_bit(folder):
    (tree, facts), warnings = restore(folder)
    assert warnings == []
    assert facts == {"loss": [0.1 * 3, float("inf")]}
    expected = make_tree(3)
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(
        jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)
    assert Checkpoints(folder).steps() == [2, 3]


def test_nothing_to_read(tmp_path):
    assert restore(tmp_path / "none") == (None, [])
    assert not (tmp_path / "none").exists()


def test_array_that_changes_after_saving_is_saved_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    array = np.arange(100_000)
    checkpoints.save(1, {"array": array}, {})
    array += 1
    checkpoints.wait()
    checkpoints.close()
    (tree, _), _ = restore(tmp_path, {"array": array})
    np.testing.assert_array_equal(tree["array"], np.arange(100_000))


def cut(data):
    return data[: len(data) // 2]


def empty(data):
    return b""


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *product(["largest", "record/metadata"], [cut, empty, flip, None]),
        *product(["arrays/_METADATA"], [cut, empty, flip]),
    ],
)
def test_damaged_newest_is_named_and_the_one_before_used(folder, file, damage):
    if file == "largest":
        files = (path for path in (folder / "3/arrays").rglob("*") if path.is_file())
        path = max(files, key=lambda path: path.stat().st_size)
    else:
        path = folder / "3" / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    (tree, facts), (warning,) = restore(folder)
    assert warning.startswith(f"{folder / '3'}: damaged, set aside as damaged-3: ")
    assert "\n" not in warning
    assert facts["loss"][0] == 0.1 * 2
    assert digest(tree) == digest(make_tree(2))
    assert (folder / "damaged-3").is_dir()
    # The run comes to that step again, and falls behind no more.
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, make_tree(3), {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3]
    checkpoints.close()


def test_what_orbax_notes_beside_the_arrays_may_be_missing(folder):
    (folder / "3/arrays/_METADATA").unlink()
    (tree, _), warnings = restore(folder)
    assert warnings == []
    assert digest(tree) == digest(make_tree(3))


def test_all_damaged(folder):
    for record in folder.glob("*/record/metadata"):
        record.unlink()
    message = (
        rf"{folder}: no checkpoint is left that can be read, only damaged-2, damaged-3;"
        " --overwrite begins the run anew"
    )
    for _ in range(2):  # what is set aside may be all that is left of a long run
        with pytest.raises(CheckpointError, match=message):
            restore(folder)
        assert {path.name for path in folder.iterdir()} == {"damaged-2", "damaged-3"}
    (folder / "damaged-2").rename(folder / "2")
    with pytest.raises(CheckpointError, match=message):
        restore(folder)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EIO, "Input/output error"), "3: cannot be read: Input/output"),
        (OSError(errno.EMFILE, "Too many", "/disk/f"), "/disk/f: cannot be read: Too"),
        (MemoryError(), "3: cannot be read: MemoryError"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            "3: cannot be read: RESOURCE_EXHAUSTED: Out of memory",
        ),
        (
            ValueError("DATA_LOSS: Error reading file [os_error_code='5']"),
            "3: cannot be read: Input/output error",
        ),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_what_the_system_fails_to_read_is_not_set_aside(
    folder, monkeypatch, error, told, behind
):
    def read(self, *args):
        if behind:
            raise ValueError("of a layer above") from error
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_read", read)
        with pytest.raises(CheckpointError) as raised:
            restore(folder)
    assert told in str(raised.value)
    assert str(raised.value).endswith(f"once {folder / '3'} is moved away")
    assert {path.name for path in folder.iterdir()} == {"2", "3"}
    (tree, _), warnings = restore(folder)
    assert (int(tree["step"]), warnings) == (3, [])


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        ValueError("NOT_FOUND: [os_error_code='2']"),
        OSError("of Orbax, not of the system"),
    ],
)
def test_what_is_missing_is_damage(folder, monkeypatch, error):
    read = Checkpoints._read

    def read_but_for_3(self, step, *args):
        if step == 3:
            raise error
        return read(self, step, *args)

    monkeypatch.setattr(Checkpoints, "_read", read_but_for_3)
    (tree, _), (warning,) = restore(folder)
    assert int(tree["step"]) == 2
    assert "damaged, set aside as damaged-3" in warning


def test_what_is_refused_is_not_set_aside(folder):
    def refuse(facts):
        raise UsageError("of another run")

    with pytest.raises(UsageError, match="of another run"):
        restore(folder, refuse=refuse)
    assert Checkpoints(folder).steps() == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"half": jnp.zeros(5, jnp.bfloat16)},
            r"half is bfloat16\[5\] here and .*\[4\]",
        ),
        ({"half": jnp.zeros(4)}, r"half is float32\[4\] here and bfloat16"),
        ({"more": jnp.zeros(1)}, r"more is float32\[1\] here and nothing in"),
    ],
)
def test_other_arrays_are_refused_by_name(folder, change, message):
    with pytest.raises(UsageError, match=message):
        restore(folder, {**make_tree(), **change})


def test_left_over_by_a_kill_is_cleared_away(folder):
    (folder / "4.orbax-checkpoint-tmp").mkdir()
    assert restore(folder)[0][1]["loss"][0] == 0.1 * 3
    assert not (folder / "4.orbax-checkpoint-tmp").exists()


def test_one_that_cannot_be_written_is_told_and_the_last_good_one_kept(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [2, 3]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow any larger, as if the disk were full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(CheckpointError) as raised:  # noqa: PT012
            checkpoints.save(4, make_tree(4), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = str(raised.value)
    assert "the checkpoint of step 4 could not be written" in message
    assert message.endswith(": File too large; the last good one, of step 3, is kept")
    assert "\n" not in message
    assert {path.name for path in folder.iterdir()} == {"2", "3"}
    assert restore(folder)[0][1]["loss"][0] == 0.1 * 3


FULL = (  # as TensorStore says it, with a specification of 1500 characters
    'RESOURCE_EXHAUSTED: Error opening "zarr" driver: Error writing "l1/.zarray" in'
    ' OCDBT database at local file "/run/ocdbt.process_0/": Failed writing:'
    ' "/run/ocdbt.process_0/d/f766e314": Failed to write 189 bytes to file 14: No space'
    " left on device%s [os_error_code='28']"
)


@pytest.mark.parametrize(
    "between",
    [
        "",
        r""" [tensorstore_spec='{\"create\":true,\"driver\":\"zarr\",\"metadata\":"""
        r"""{\"shape\":[1400]},\"store_data_equal_to_fill_value\":true}']""",
    ],
)
def test_what_keeps_the_system_from_writing_is_found_in_what_orbax_says(between):
    assert reason(ValueError(FULL % between)) == "No space left on device"


def test_what_orbax_says_of_no_error_of_the_system_is_its_first_line():
    assert reason(ValueError("DATA_LOSS: no [a='b']\nmore")) == "DATA_LOSS: no [a='b']"
    assert reason(ValueError()) == "ValueError"


def test_trial_measures_and_leaves_nothing(folder):
    checkpoints = Checkpoints(folder)
    assert 0 < checkpoints.seconds_to_save(make_tree()) < 60
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"2", "3"}


def test_digest_is_of_bits_paths_and_types():
    tree = {"a": jnp.zeros(2), "b": jnp.ones(2)}
    digests = {
        digest(tree),
        digest({"a": jnp.ones(2), "b": jnp.zeros(2)}),
        digest({"a": -jnp.zeros(2), "b": jnp.ones(2)}),
        digest({"a": jnp.zeros(2, jnp.int32), "b": jnp.ones(2)}),
        digest({"a": jnp.zeros((2, 1)), "b": jnp.ones(2)}),
    }
    assert len(digests) == 5
    assert digest(jax.tree.map(np.asarray, tree)) in digests


def test_another_label_tree_is_refused_by_name(tmp_path):
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}}

    def state(label):
        return so.adamsrt(1e-3, labels={"conv": {"kernel": label}}).init(params)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state("filter"), {})
    checkpoints.close()
    for other in ("layer", "euclidean"):
        with pytest.raises(UsageError, match=r"--resume: .*conv.* in the checkpoint"):
            Checkpoints(tmp_path).restore(state(other), accept, print)


@pytest.mark.parametrize(
    "notes", ["3", "[]", '{"item_handlers": 3}', '{"custom_metadata": 3}']
)
@pytest.mark.parametrize("step", [2, 3])
def test_notes_of_another_kind_cost_one_checkpoint(folder, notes, step):
    # JSON, so that Orbax takes it for its own, and lists nothing at all
    (folder / str(step) / "_CHECKPOINT_METADATA").write_text(notes)
    (tree, _), warnings = restore(folder)
    assert int(tree["step"]) == 5 - step
    assert [w.split(": ")[1] for w in warnings] == [
        f"damaged, set aside as damaged-{step}"
    ]


def test_no_readable_notes_at_all(folder):
    for notes in folder.rglob("_CHECKPOINT_METADATA"):
        notes.write_text("3")
    with pytest.raises(CheckpointError, match="no checkpoint is left"):
        restore(folder)
