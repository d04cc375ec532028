"""Reading what tensorflow-datasets has prepared."""

import os
import shutil
import sys

import numpy as np
import pytest
from image_files import encoded, pixels
from prepared_sets import prepare_fake

from experiments.data import DATASETS, load_dataset, load_streamed, preparing
from experiments.data.recipes import RECIPES
from experiments.errors import UsageError

pytestmark = pytest.mark.usefixtures("places")


def test_every_name_has_a_loader_and_statistics_of_its_channels():
    for name, recipe in RECIPES.items():
        assert (name in DATASETS) != recipe.streamed
        channels = 1 if "mnist" in name else 3
        assert len(recipe.mean) == len(recipe.std) == channels
        mean, std = recipe.in_bytes()
        assert mean == tuple(255 * m for m in recipe.mean)
        assert std == tuple(255 * s for s in recipe.std)


def test_reading(mnist):
    dataset = load_dataset("mnist")
    assert dataset.train.images.shape == (60, 28, 28, 1)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.test.images.shape == (20, 28, 28, 1)
    # tensorflow-datasets shuffles the images, and labels go with them.
    written = {pixels(i, (28, 28, 1)).tobytes(): i % 10 for i in range(60)}
    read = zip(dataset.train.images, dataset.train.labels, strict=True)
    assert {image.tobytes(): label for image, label in read} == written
    assert dataset.mean == (255 * 0.1307,)
    assert dataset.augment.__name__ == "unchanged"


def test_read_once_and_without_tensorflow(mnist, monkeypatch, tfds):
    first = load_dataset("mnist")
    assert "tensorflow" not in sys.modules
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # nor the package
    again = load_dataset("mnist")
    assert np.array_equal(again.train.images, first.train.images)
    assert np.array_equal(again.test.labels, first.test.labels)


def fails(match, name="mnist"):
    load = load_dataset if name in DATASETS else load_streamed
    with pytest.raises(UsageError, match=match) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: os.truncate(shard, 70_000), "damaged"),
        (lambda shard: shard.write_bytes(b"hello" * 20_000), "damaged"),
        (lambda shard: shard.write_bytes(b""), "damaged"),
        (lambda shard: shard.unlink(), "missing"),
    ],
)
def test_damaged_files_are_named(mnist, damage, message):
    shard = mnist / "mnist-train.array_record-00000-of-00001"
    damage(shard)
    fails(f"{shard}: {message}.*delete {mnist}, and it is prepared again")


def test_a_byte_that_changed_is_noticed(mnist):
    shard = mnist / "mnist-test.array_record-00000-of-00001"
    data = bytearray(shard.read_bytes())
    position = data.index(b"IDAT") + 20
    data[position] ^= 0xFF
    shard.write_bytes(data)
    fails(f"{shard}: damaged")


def test_damaged_description(mnist):
    for text in ("{", "[]", '{"fileFormat": "array_record", "splits": [{}]}'):
        (mnist / "dataset_info.json").write_text(text)
        fails("dataset_info.json: damaged")


def test_what_was_never_finished_is_not_taken_for_prepared(mnist):
    mnist.rename(mnist.with_name("incomplete.ABCDEF_1.2.3"))
    assert preparing.find_prepared("mnist") is None


def test_the_newest_version_counts(mnist):
    for version in ("1.10.0", "1.9.0"):
        shutil.copytree(mnist, mnist.with_name(version))
    assert preparing.find_prepared("mnist").path.name == "1.10.0"


def test_label_out_of_range(tfds, places):
    splits = {"train": [0, 1, 11], "test": [0]}
    prepare_fake(tfds, places, "mnist", splits, (28, 28, 1), 12)
    fails(r"mnist/1.2.3, train: image \d has label 11; the labels of 10 classes run")


def test_no_images_to_test_with(tfds, places):
    prepare_fake(tfds, places, "mnist", {"train": [0, 1]}, (28, 28, 1), 10)
    fails("mnist/1.2.3: has no test images")


def test_another_file_format(mnist):
    info = mnist / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    fails("1.2.3: prepared as tfrecord, and array_record is needed")


def test_unreadable_image(tfds, places):
    splits = {"train": [0], "test": [0]}
    spoil = {"encode": lambda array: encoded(array)[:200]}
    prepare_fake(tfds, places, "mnist", splits, (28, 28, 1), 10, **spoil)
    fails(r"mnist-train.*-00001: image 0 of train: unreadable image")


def test_imagenet_streams_in_worker_processes(tfds, places):
    pytest.importorskip("grain")
    labels = [index * 7 % 1000 for index in range(24)]
    shape = (260, 300, 3)
    prepare_fake(
        tfds,
        places,
        "imagenet2012",
        {"train": labels, "validation": labels[:5]},
        shape,
        1000,
    )
    dataset = load_streamed("imagenet2012")
    assert (len(dataset.train), len(dataset.test)) == (24, 5)
    assert dataset.mean == tuple(255 * m for m in (0.485, 0.456, 0.406))
    steps = {"seed": 3, "start": 0, "stop": 5}
    alone = list(dataset.train.train_batches(8, **steps, workers=0))
    workers = list(dataset.train.train_batches(8, **steps, workers=2))
    assert len(alone) == len(workers) == 5
    for one, other in zip(alone, workers, strict=True):
        assert one[0].shape == (8, 224, 224, 3)
        assert np.array_equal(one[0], other[0])
        assert np.array_equal(one[1], other[1])
    epoch = np.concatenate([batch_labels for _, batch_labels in alone[:3]])
    assert sorted(epoch) == sorted(labels)
    test = list(dataset.test.test_batches(4, workers=0))
    assert [len(batch_labels) for _, batch_labels in test] == [4, 1]
    assert sorted(np.concatenate([part for _, part in test])) == sorted(labels[:5])


def test_damage_found_by_a_worker(tfds, places):
    pytest.importorskip("grain")
    splits = {"train": [0] * 8, "validation": [0]}
    path = prepare_fake(tfds, places, "imagenet2012", splits, (8, 8, 3), 1000)
    shard = path / "imagenet2012-train.array_record-00000-of-00001"
    stream = load_streamed("imagenet2012").train
    os.truncate(shard, 100)
    with pytest.raises(UsageError, match=f"{shard}: damaged"):
        list(stream.train_batches(4, seed=0, start=0, stop=2, workers=1))
