"""Decoded images on disk: complete or not there, whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import some_images, write_folder

from experiments.data.cache import (
    Arrays,
    cache_root,
    cached_arrays,
    entries,
    key_of,
    remembered_key,
)
from experiments.data.dataset import Split
from experiments.data.files import lock, new_file, new_folder
from experiments.errors import UsageError

ROOT = Path(__file__).parent.parent
WORD = "word"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    train, test = (
        Split(
            rng.integers(0, 256, (count, 4, 5, 3), np.uint8),
            rng.integers(0, 2, count).astype(np.int32),
        )
        for count in (6, 3)
    )
    return Arrays(train, test, ("ant", "bee"), (1 / 3, 2.0, 0.1), (1.0, 2 / 7, 3.0))


def cached(made, key="k"):
    """The entry; counts in ``made`` how often it is built."""

    def build():
        made.append(1)
        return arrays()

    return cached_arrays(key, "source", build)


def same(first, second):
    assert first.classes == second.classes
    assert (first.mean, first.std) == (second.mean, second.std)
    for split in ("train", "test"):
        for kind, array in vars(getattr(first, split)).items():
            other = getattr(getattr(second, split), kind)
            assert array.dtype == other.dtype
            assert np.array_equal(array, other)


def test_built_once_and_read_back_to_the_bit():
    made = []
    same(cached(made), arrays())
    same(cached(made), arrays())
    assert len(made) == 1


def test_what_is_cached_is_mapped_and_read_where_it_is_looked_at():
    cached([])
    found = cached([])
    for array in (found.train.images, found.test.labels):
        assert isinstance(array, np.memmap)
        array[0] = 0  # in memory alone
    same(cached([]), arrays())


def test_another_key_is_another_entry(cache):
    made = []
    cached(made, "a")
    cached(made, "b")
    assert len(made) == 2
    found = entries()
    assert [(source, path.name) for source, path, _ in found] == [
        ("source", "a"),
        ("source", "b"),
    ]
    sizes = [sum(f.stat().st_size for f in path.iterdir()) for _, path, _ in found]
    assert [size for _, _, size in found] == sizes


def test_keys_differ_with_every_part():
    parts = [("folder", "x", None), ("folder", "x", 32), ("folder", "y", None), ("x",)]
    assert len({key_of(*p) for p in parts}) == len(parts)


def test_the_default_place(monkeypatch):
    monkeypatch.delenv("SPHERICAL_OPTAX_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_root() == Path("/home/somebody/.cache/spherical_optax")


@pytest.mark.parametrize(
    "name", ["entry.json", "train_images.npy", "test_labels.npy", "test_images.npy"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_damaged_entry_is_made_anew(cache, capsys, name, damage):
    made = []
    cached(made)
    file = cache / "arrays/k" / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        (np.save if name.endswith("npy") else Path.write_text)(
            file, *([np.zeros(3)] if name.endswith("npy") else ['{"arrays": {"a": 1}}'])
        )
    else:
        file.write_bytes(data[: 0 if damage == "empty" else len(data) - 7])
    same(cached(made), arrays())
    assert len(made) == 2
    assert "arrays/k: damaged; made anew" in capsys.readouterr().err
    same(cached(made), arrays())
    assert len(made) == 2
    assert [path.name for path in (cache / "arrays").iterdir()] == ["k"]


@pytest.mark.parametrize("wrong", ["labels", "mean", "std"])
def test_an_entry_of_other_content_is_made_anew(cache, wrong):
    """As a disk may return it, or a hand that edits: shapes and types are the same."""
    made = []
    cached(made)
    if wrong == "labels":
        np.save(cache / "arrays/k/train_labels.npy", np.zeros(6, np.int32))
    else:
        file = cache / "arrays/k/entry.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), wrong: [1.0]}))
    same(cached(made), arrays())
    assert len(made) == 2


def test_an_entry_that_an_older_version_wrote(cache):
    made = []
    cached(made)
    file = cache / "arrays/k/entry.json"
    facts = json.loads(file.read_text())
    del facts["labels"]
    file.write_text(json.dumps(facts))
    same(cached(made), arrays())
    assert len(made) == 1


def test_an_error_leaves_nothing_behind(cache):
    def build():
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        cached_arrays("k", "source", build)
    assert not (cache / "arrays").exists() or not list((cache / "arrays").iterdir())


def test_a_full_disk_is_one_clear_line(cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UsageError, match=r"arrays/k: No space left on device; SPHER"):
        cached([])
    assert not list((cache / "arrays").iterdir())


def test_keys_are_remembered_until_the_fingerprint_changes(cache):
    asked = []

    def make_key():
        asked.append(1)
        return f"key {len(asked)}"

    source = Path("/somewhere/set.tar")
    assert remembered_key(source, "f", make_key) == "key 1"
    assert remembered_key(source, "f", make_key) == "key 1"
    assert remembered_key(source, "g", make_key) == "key 2"
    assert remembered_key(Path("/elsewhere"), "g", make_key) == "key 3"
    for note in (cache / "sources").iterdir():
        note.write_text("{")
    assert remembered_key(source, "g", make_key) == "key 4"


def test_new_files_and_folders_appear_when_they_are_complete(tmp_path):
    with new_folder(tmp_path / "folder") as made:
        (made / "a").write_text(WORD)
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "folder/a").read_text() == WORD
    with new_file(tmp_path / "file") as made:
        made.write_text(WORD)
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == WORD
    for make, name in ((new_folder, "other folder"), (new_file, "other file")):
        with pytest.raises(KeyboardInterrupt), make(tmp_path / name) as made:
            raise KeyboardInterrupt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def start(code, *args):
    """A process that runs ``code`` with this test's environment."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from experiments.data.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), 'x'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = start(code, tmp_path / "lock")
    assert holder.stdout.readline() == "held\n"
    waiter = start(code, tmp_path / "lock")
    assert waiter.stderr.readline() == "waiting for another process: x\n"
    holder.kill()
    assert waiter.stdout.readline() == "held\n"
    waiter.kill()
    for process in (holder, waiter):
        process.communicate()
    with lock(tmp_path / "lock", "x"):
        pass


SLOW_LOAD = """
import sys, time
import numpy as np
from experiments.data import load_dataset

real, slow = np.save, float(sys.argv[2])

def save(file, array):
    real(file, array)
    print("wrote", flush=True)
    time.sleep(slow)

np.save = save
print(len(load_dataset("folder:" + sys.argv[1]).train))
"""


def test_killed_while_writing(tmp_path, cache):
    folder = write_folder(tmp_path / "set", some_images())
    process = start(SLOW_LOAD, folder, 600)
    assert process.stdout.readline() == "wrote\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    unfinished = list((cache / "arrays").iterdir())
    assert len(unfinished) == 1
    assert ".tmp-" in unfinished[0].name
    output, errors = start(SLOW_LOAD, folder, 0).communicate(timeout=60)
    assert output.split()[-1] == "12", errors
    (entry,) = (cache / "arrays").iterdir()
    assert ".tmp-" not in entry.name
    assert json.loads((entry / "entry.json").read_text())["classes"] == [
        "ant",
        "bee",
        "cat",
    ]


def test_two_processes_decode_once(tmp_path, cache):
    folder = write_folder(tmp_path / "set", some_images())
    first = start(SLOW_LOAD, folder, 0.5)
    assert first.stdout.readline() == "wrote\n"
    second = start(SLOW_LOAD, folder, 0)
    for process, writes in ((first, 3), (second, 0)):
        output, errors = process.communicate(timeout=60)
        assert output.split() == ["wrote"] * writes + ["12"], errors
    assert len(list((cache / "arrays").iterdir())) == 1
