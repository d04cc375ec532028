"""One of several processes that share data and checkpoints; prints what it found.

``test_experiments_processes.py`` starts it, once for each process, with the address of
the first, how many there are, its number, and a folder.
"""

import errno
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from image_files import encoded
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import digests
from experiments.checkpoints import Checkpoints
from experiments.data import Split, Stream
from experiments.distributed import agree, is_primary, join
from experiments.errors import CheckpointError, UsageError
from experiments.feeds import EvaluationBatches, SpreadFeed, StreamFeed
from experiments.mesh import make_layout

SHAPES = {"kernel": (3, 8, 640), "matrix": (16, 8), "scale": (8,), "count": ()}
LAYOUTS = {
    # Split along all devices, over all of them twice, and not at all.
    "written": {
        "kernel": PartitionSpec(None, None, ("x", "y")),
        "matrix": PartitionSpec("y", None),
    },
    "read": {
        "kernel": PartitionSpec(None, "x", "y"),
        "matrix": PartitionSpec(None, "x"),
        "scale": PartitionSpec("y"),
    },
}


def values(step):
    """The arrays of a step, in one piece; one of them is in each process for itself."""
    rng = np.random.default_rng(step)
    arrays = {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}
    return {**arrays, "own": np.arange(step, step + 2, dtype=np.uint32)}


def spread(tree, layout):
    """The same over the devices of all processes."""
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def put(name, x):
        where = NamedSharding(mesh, LAYOUTS[layout].get(name, PartitionSpec()))
        return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

    own = tree["own"]
    return {k: own if k == "own" else put(k, x) for k, x in tree.items()}


def is_right(tree, step):
    """Whether all that this process has is as it was in that step."""
    expected = values(step)
    return all(
        np.array_equal(shard.data, expected[name][shard.index])
        for name, x in tree.items()
        if isinstance(x, jax.Array)
        for shard in x.addressable_shards
    ) and np.array_equal(tree["own"], expected["own"])


def restore(folder):
    """What is read with another layout, and what was warned of."""
    like, warnings = spread(values(0), "read"), []
    reader = Checkpoints(folder)
    found = reader.restore(like, lambda facts: None, warnings.append)
    reader.close()
    assert found is not None
    tree, facts = found
    same = all(
        tree[name].sharding == x.sharding
        for name, x in like.items()
        if isinstance(x, jax.Array)
    )
    assert same, "it lies elsewhere than it should"
    return {"right": is_right(tree, facts["step"]), **facts}, warnings


def fails(folder, refuse=lambda facts: None):
    """What restoring ends with, and what is in the folder when all have ended it."""
    reader = Checkpoints(folder)
    try:
        reader.restore(spread(values(0), "read"), refuse, lambda line: None)
    except (CheckpointError, UsageError) as error:
        agree(0)
        names = sorted(path.name for path in folder.iterdir())
        return f"{type(error).__name__}: {error}", names
    finally:
        reader.close()
    raise AssertionError("it was read")


def cannot_read(self, *args):
    raise OSError(errno.EIO, "Input/output error")


def refuse(facts):
    raise UsageError("of another run")


def damage(path):
    """Changes a bit in the middle of the largest file of a checkpoint's arrays."""
    files = [file for file in (path / "arrays").rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def write_again(path):
    """Step 2 once more, as 4, with notes beside it that Orbax cannot list."""
    shutil.copytree(path / "2", path / "4")
    (path / "4/_CHECKPOINT_METADATA").write_text("3")


BATCH, STEPS = 8, 3
PICKED, DECODED = set(), set()  # images, from memory and from a stream


class Noting(np.ndarray):
    """Images in memory that note which of them are read."""

    def __getitem__(self, rows):
        PICKED.update(np.ravel(rows).tolist())
        return np.asarray(self).__getitem__(rows)


@dataclass(frozen=True)
class Records:
    """Encoded images, each of one grey, that note which of them are read."""

    def __len__(self):
        return BATCH * STEPS + 1

    def __getitem__(self, index):
        DECODED.add(index)
        return encoded(np.full((8, 8, 3), index, np.uint8)), index

    def where(self, index):
        return f"image {index}"


def whole(x):
    return multihost_utils.process_allgather(x, tiled=True)


def feeds():
    """What the feeds hand out, over all processes, and what they read for it here."""
    count, layout = BATCH * STEPS + 1, make_layout(None, BATCH)
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1).view(Noting)
    split = Split(images, np.arange(count, dtype=np.int32))
    key = jax.random.key(0)
    feed = SpreadFeed(split, BATCH, 0, key, None, layout)
    feed.begin(1, 0)
    source = feed.source()
    mine = [shard.data.shape for shard in source.images.addressable_shards]
    told = {
        "order": whole(source.labels).tolist(),
        "same": (whole(source.images)[..., 0, 0, 0] == whole(source.labels)).tolist(),
        "read": len(PICKED),
        "kept": sum(np.prod(shape).item() for shape in mine),
    }
    stream = Stream(Records(), np.arange(count), num_classes=count, size=4)
    feed = StreamFeed(stream, BATCH, 0, STEPS, False, layout)
    feed.begin(1, 0)
    batches = [feed.source() for _ in range(STEPS)]
    told["streamed"] = [whole(labels).tolist() for _, labels in batches]
    told["decoded"] = len(DECODED)
    told["tested"] = [
        [whole(labels).tolist(), whole(weights).tolist()]
        for _, labels, weights in EvaluationBatches(stream, BATCH, layout)
    ]
    return told


def main():
    address, count, number, folder = sys.argv[1:]
    folder = Path(folder)
    join(address, int(count), int(number))
    told = {"feeds": feeds()}
    told |= {"of_one": restore(folder / "of_one"), "old": restore(folder / "old")}

    writer = Checkpoints(folder / "of_several")
    for step in (1, 2, 3):
        tree = spread(values(step), "written")
        writer.save(step, tree, {"step": step, "by": jax.process_index()})
        for leaf in jax.tree.leaves(tree):  # as if the next step reused its memory
            if isinstance(leaf, jax.Array):
                leaf.delete()
    writer.wait()
    told["steps"] = writer.steps()
    writer.close()
    told["of_several"] = restore(folder / "of_several")
    if is_primary():
        damage(folder / "of_several/3")
    agree(0)
    told["damaged"] = restore(folder / "of_several")

    if is_primary():
        write_again(folder / "of_several")
    agree(0)
    told["notes"] = restore(folder / "of_several")

    # What one process alone refuses, or cannot read, is set aside by none.
    of_several, here = folder / "of_several", not is_primary()
    told["refused_in_one"] = fails(of_several, *[refuse] * here)
    read = Checkpoints._read
    if here:
        Checkpoints._read = cannot_read
    told["unread_in_one"] = fails(of_several)
    Checkpoints._read = read

    # What a file system returns wrong to one process alone is found out by all.
    if here:
        count = digests._sum_of_all
        digests._sum_of_all = lambda leaf: count(leaf) + 1
    told["wrong_in_one"] = fails(of_several)
    told["wrong_again"] = fails(of_several)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
