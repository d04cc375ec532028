"""Several processes: what each reads of the data, and their common checkpoints."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import process_worker
import pytest
from free_port import free_port

from experiments import checkpoints
from experiments.checkpoints import Checkpoints
from experiments.data import Stream
from experiments.digests import digest, sum_of_part, table_of
from experiments.feeds import order_of_epoch

ROOT = Path(__file__).parent.parent


def table_of_first_version(leaves):
    """Digests as version 0.1.0 made them: of all bytes of an array."""
    return {
        path: [
            str(leaf.dtype),
            list(leaf.shape),
            hashlib.sha256(leaf.tobytes()).hexdigest(),
        ]
        for path, leaf in leaves.items()
    }


def write(folder, step):
    writer = Checkpoints(folder)
    writer.save(step, process_worker.values(step), {"step": step})
    writer.wait()
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With checkpoints that this process alone has written."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write(folder / "of_one", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "table_of", table_of_first_version)
        write(folder / "old", 5)
    return folder


@pytest.fixture(scope="module")
def told(folder):
    """What two processes with two devices each have to say."""
    worker = ROOT / "tests/process_worker.py"
    arguments = [sys.executable, worker, f"127.0.0.1:{free_port()}", "2"]
    running = [
        subprocess.Popen(
            [*arguments, str(number), folder],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(worker.parent)]),
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    ended = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_each_reads_and_keeps_its_half_of_an_epoch_in_memory(told):
    """The order is that of one process, from the seed and the epoch."""
    order = order_of_epoch(25, 8, 0, 1).tolist()
    for of_process in told:
        found = of_process["feeds"]
        assert found["order"] == order
        assert np.all(found["same"])
        assert found["read"] == found["kept"] == 12


def test_each_decodes_its_half_of_a_stream(told):
    stream = Stream(process_worker.Records(), np.arange(25), num_classes=25, size=4)
    batches = stream.train_batches(8, seed=0, start=0, stop=3, workers=0)
    expected = [labels.tolist() for _, labels in batches]
    for of_process in told:
        assert of_process["feeds"]["streamed"] == expected
        assert of_process["feeds"]["decoded"] == 12


def test_the_test_has_every_image_once(told):
    for of_process in told:
        labels, weights = zip(*of_process["feeds"]["tested"], strict=True)
        assert np.ravel(weights).tolist() == 25 * [1] + 7 * [0]
        assert np.ravel(labels)[:25].tolist() == list(range(25))


def test_one_process_writes_and_two_read(told):
    for of_process in told:
        assert of_process["of_one"] == [{"right": True, "step": 4}, []]


def test_two_read_what_the_first_version_wrote(told):
    for of_process in told:
        assert of_process["old"] == [{"right": True, "step": 5}, []]


def test_two_write_and_read_in_other_parts(told):
    for of_process in told:
        assert of_process["steps"] == [2, 3]
        assert of_process["of_several"] == [{"right": True, "step": 3, "by": 0}, []]


def test_both_write(told, folder):
    """Each has half of the kernel, and the first no copy of all."""
    kernel = 4 * 3 * 8 * 640
    arrays = folder / "of_several/damaged-2/arrays"
    parts = ("ocdbt.process_0", "ocdbt.process_1", ".")
    of_first, of_second, together = (
        sum(file.stat().st_size for file in (arrays / part / "d").iterdir())
        for part in parts
    )
    assert 0.4 * kernel < of_first < 0.7 * kernel
    assert 0.4 * kernel < of_second < 0.7 * kernel
    assert together < 0.1 * kernel


def test_damage_is_found_by_all_and_the_one_before_used(told, folder):
    for of_process in told:
        found, (warning,) = of_process["damaged"]
        assert found == {"right": True, "step": 2, "by": 0}
        assert f"{folder}/of_several/3: damaged, set aside as damaged-3" in warning


def test_notes_of_another_kind_cost_one_checkpoint_for_all(told, folder):
    for of_process in told:
        found, (warning,) = of_process["notes"]
        assert found == {"right": True, "step": 2, "by": 0}
        assert f"{folder}/of_several/4: damaged, set aside as damaged-4" in warning


def test_what_one_reads_wrong_is_damaged_for_all(told):
    for of_process in told:
        for attempt in ("wrong_in_one", "wrong_again"):
            error, names = of_process[attempt]
            assert "no checkpoint is left that can be read" in error
            assert names == ["damaged-2", "damaged-3", "damaged-4"]


def test_what_one_refuses_or_cannot_read_is_set_aside_by_none(told, folder):
    here = f"{folder}/of_several/2"
    unread = f"CheckpointError: {here}: cannot be read: %s; --resume tries it"
    expected = {
        "refused_in_one": [
            f"UsageError: --resume: process 1 refuses {here}",
            "UsageError: of another run",
        ],
        "unread_in_one": [unread % "by process 1", unread % "Input/output error"],
    }
    for attempt, errors in expected.items():
        for of_process, expected_error in zip(told, errors, strict=True):
            error, names = of_process[attempt]
            assert error.startswith(expected_error)
            assert names == ["2", "damaged-3", "damaged-4"]


def test_one_reads_what_two_wrote(told, folder):
    (folder / "of_several/damaged-2").rename(folder / "of_several/2")
    reader = Checkpoints(folder / "of_several")
    found, _ = reader.restore(process_worker.values(0), lambda facts: None, print)
    reader.close()
    assert digest(found) == digest(process_worker.values(2))


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "float16", "float32", "int64", "complex128"]
)
def test_parts_add_up_to_the_whole_and_no_bit_is_missed(dtype):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(3, 4, 6)).astype(dtype)
    whole = sum_of_part(x, (0, 0, 0), x.shape)
    parts = [(0, 0, 0), (0, 2, 0), (0, 0, 3), (0, 2, 3)]
    pieces = [
        sum_of_part(x[:, j : j + 2, k : k + 3], (i, j, k), x.shape) for i, j, k in parts
    ]
    assert sum(pieces) % 2**64 == whole
    for byte in range(x.nbytes):
        other = x.copy()
        other.reshape(-1).view(np.uint8)[byte] ^= 1
        assert sum_of_part(other, (0, 0, 0), x.shape) != whole
    swapped = x.copy()
    swapped[0, 0], swapped[1, 1] = x[1, 1], x[0, 0]
    assert sum_of_part(swapped, (0, 0, 0), x.shape) != whole or (swapped == x).all()


def test_digests_of_edge_cases():
    empty = np.zeros((0, 3), np.float32)
    (row,) = table_of({"a": empty}).values()
    assert row == ["float32", [0, 3], f"{0:016x}"]
    zero, negative = np.float32(0.0), np.float32(-0.0)
    assert table_of({"a": zero}) != table_of({"a": negative})
