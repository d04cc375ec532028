"""Data sets of tensorflow-datasets: import, preparation, reading."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, pixels

from experiments.data import (
    DATASETS,
    __main__,
    downloads,
    gzip_headers,
    load_dataset,
    load_streamed,
    preparing,
)
from experiments.data.recipes import RECIPES
from experiments.errors import UsageError


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A data folder and a cache of its own for each test."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "tfds"


@pytest.fixture
def tfds():
    return pytest.importorskip("tensorflow_datasets")


def prepare_fake(tfds, folder, name, splits, shape, num_classes, file_format=None):
    """Writes a small data set as tensorflow-datasets would; without TensorFlow.

    Args:
      tfds: tensorflow-datasets.
      folder: its data folder.
      name: of the data set.
      splits: name of a split to its labels.
      shape: of the images.
      num_classes: that its labels are encoded with.
      file_format: array_record by default.
    """

    def examples(labels):
        for index, label in enumerate(labels):
            yield index, {"image": encoded(pixels(index, shape)), "label": label}

    with tfds.core.registered.skip_registration():

        class Fake(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.2.3")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="Random images.",
                    features=tfds.features.FeaturesDict(
                        {
                            "image": tfds.features.Image(shape=shape),
                            "label": tfds.features.ClassLabel(num_classes=num_classes),
                        }
                    ),
                )

            def _split_generators(self, dl_manager):
                return {split: examples(labels) for split, labels in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Fake.name = name
        builder = Fake(data_dir=folder, file_format=file_format or "array_record")
        builder.download_and_prepare()
    return folder / name / "1.2.3"


@pytest.fixture
def mnist(tfds, places):
    """Sixty training and twenty test images in the guise of MNIST."""
    labels = [index % 10 for index in range(60)]
    return prepare_fake(
        tfds, places, "mnist", {"train": labels, "test": labels[:20]}, (28, 28, 1), 10
    )


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


def test_unreadable_image(tfds, places, monkeypatch):
    real = encoded

    def spoilt(array):
        return real(array)[:200]

    monkeypatch.setitem(prepare_fake.__globals__, "encoded", spoilt)
    prepare_fake(tfds, places, "mnist", {"train": [0], "test": [0]}, (28, 28, 1), 10)
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


# The import of archives, and what is missing


HEADER = struct.pack("<3sBIBB", b"\x1f\x8b\x08", 8, 1_500_000_000, 0, 3) + b"a.bin\0"


@pytest.fixture
def archives(tfds, tmp_path, monkeypatch):
    """Two small archives that tensorflow-datasets seems to know for MNIST."""
    files = {}
    folder = tmp_path / "downloaded"
    folder.mkdir()
    body = gzip.compress(b"images" * 100, mtime=0)[10:]
    for name, data in (("a.bin.gz", HEADER + body), ("b.bin", b"labels" * 20)):
        files[name] = folder / name
        files[name].write_bytes(data)
    real = downloads.make_builder
    checksums = pytest.importorskip("tensorflow_datasets.core.download.checksums")
    infos = {
        f"http://localhost:9/{file.name}": checksums.compute_url_info(file)
        for file in files.values()
    }

    def fake(name):
        builder = real(name)
        monkeypatch.setattr(type(builder), "url_infos", infos)
        return builder

    monkeypatch.setattr(downloads, "make_builder", fake)
    monkeypatch.setattr(downloads, "ORIGINAL_HEADERS", {"mnist": {"a.bin.gz": HEADER}})
    return files


def checked(name):
    """The archives as the download manager finds them."""
    return {archive.filename: archive for archive in downloads.needed_archives(name)}


def test_import(archives, places, tfds):
    renamed = archives["b.bin"].rename(archives["b.bin"].with_name("renamed"))
    done = downloads.import_archives("mnist", [renamed, archives["a.bin.gz"]])
    assert [(d.file.name, d.archive.filename, d.restored) for d in done] == [
        ("renamed", "b.bin", False),
        ("a.bin.gz", "a.bin.gz", False),
    ]
    manager = tfds.download.DownloadManager(
        download_dir=places / "downloads",
        dataset_name="mnist",
        url_infos=downloads.make_builder("mnist").url_infos,
        force_checksums_validation=True,
    )
    found = manager.download("http://localhost:9/b.bin")
    assert Path(found).read_bytes() == renamed.read_bytes()
    assert all(archive.is_there() for archive in checked("mnist").values())
    info = json.loads(checked("mnist")["b.bin"].info_path.read_text())
    assert info["url_info"]["checksum"] == hashlib.sha256(b"labels" * 20).hexdigest()
    assert downloads.import_archives("mnist", [renamed])  # again: nothing happens


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("b.bin", b"labels" * 19, "b.bin: truncated: 114 bytes, .* should have 120"),
        ("b.bin", b"labels" * 21, "b.bin: wrong size: 126 bytes"),
        ("b.bin", b"labelz" * 20, "b.bin: wrong checksum, damaged or another file"),
        ("x", b"labelz" * 20, "x: wrong checksum"),
        ("x", b"", "x: not an archive of mnist, which is made from a.bin.gz, b.bin"),
    ],
)
def test_import_refuses(archives, tmp_path, places, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        downloads.import_archives("mnist", [tmp_path / name])
    assert not list(places.rglob("*.bin*"))


def test_import_of_what_is_no_file(archives, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such file"):
        downloads.import_archives("mnist", [tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="not a file"):
        downloads.import_archives("mnist", [tmp_path])


def test_a_rewritten_gzip_header_is_put_back(archives, tmp_path):
    packed = gzip.compress(b"images" * 100, mtime=0)
    (tmp_path / "a.gz").write_bytes(packed)
    (done,) = downloads.import_archives("mnist", [tmp_path / "a.gz"])
    assert done.restored
    assert done.archive.path.read_bytes() == archives["a.bin.gz"].read_bytes()


def test_other_data_in_gzip_is_refused(archives, tmp_path):
    other = HEADER + gzip.compress(b"imagez" * 100, mtime=0)[10:]
    (tmp_path / "a.bin.gz").write_bytes(other)
    with pytest.raises(UsageError, match=r"a.bin.gz: wrong checksum"):
        downloads.import_archives("mnist", [tmp_path / "a.bin.gz"])


def test_an_import_that_was_cut_short_does_not_count(archives, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(downloads.shutil, "copyfile", full)
    with pytest.raises(UsageError, match="No space left"):
        downloads.import_archives("mnist", [archives["b.bin"]])
    archive = checked("mnist")["b.bin"]
    assert not archive.is_there()
    assert not list(archive.path.parent.iterdir())
    archive.path.write_bytes(archives["b.bin"].read_bytes())
    assert not archive.is_there()  # not without its .INFO


def test_an_import_cleans_up_after_one_that_was_killed(archives):
    archive = checked("mnist")["b.bin"]
    archive.path.parent.mkdir(parents=True)
    leftover = archive.path.with_name(f"{archive.path.name}.tmp-abc")
    leftover.write_bytes(b"half")
    downloads.import_archives("mnist", [archives["b.bin"]])
    assert archive.is_there()
    assert not leftover.exists()


def test_missing_without_internet(archives):
    fails(
        r"mnist: a.bin.gz is missing, and http://localhost:9/a.bin.gz cannot be reached"
        r" \(.*\); without internet, get it elsewhere and run python -m"
        r" experiments.data import mnist FILES"
    )


def test_preparing_needs_tensorflow(archives, monkeypatch):
    downloads.import_archives("mnist", list(archives.values()))
    monkeypatch.setattr(preparing, "has_tensorflow", lambda: False)
    fails(r"mnist: preparing it, .* needs TensorFlow: pip install 'spherical-optax\[")


def test_imagenet_is_downloaded_by_hand(tfds, places):
    fails("imagenet2012: ILSVRC2012_img_train.tar is missing; .*hand", "imagenet2012")
    needed = checked("imagenet2012")["ILSVRC2012_img_val.tar"]
    assert needed.path == places / "downloads/manual/ILSVRC2012_img_val.tar"


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    fails(r"tensorflow-datasets.*pip install 'spherical-optax\[datasets\]'")


def test_what_follows_a_gzip_header():
    body = gzip.compress(b"data", mtime=0)[10:]
    plain = b"\x1f\x8b\x08%c\0\0\0\0\0\x03"
    full = plain % 30 + b"\x03\0abc" + b"name\0" + b"remark\0" + b"##" + body
    for data in (HEADER + body, plain % 0 + body, full):
        assert gzip_headers.without_header(data) == body
    for data in (b"", b"PK" * 20, plain % 8 + b"no end"):
        assert gzip_headers.without_header(data) is None


# The command


def command(*args):
    return __main__.main(list(map(str, args)))


def test_list(mnist, capsys):
    assert command("list") == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines if line}
    assert states["digits"] == "available"
    assert states["mnist"] == "prepared"
    assert states["cifar10"] == "missing"
    assert states["folder:PATH"] == "available"
    assert {"imagenet2012", "svhn_cropped"} < set(states)
    assert any("cifar-10-binary.tar.gz (170 MB)" in line for line in lines)
    (mnist / "mnist-test.array_record-00000-of-00001").unlink()
    assert command("list") == 0
    assert "mnist          unusable" in capsys.readouterr().out


def test_list_without_the_package(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command("list") == 0
    output = capsys.readouterr().out
    assert "cifar10        missing    needs pip install" in output


def test_import_command(archives, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "has_tensorflow", lambda: False)
    assert command("import", "mnist", archives["b.bin"]) == 0
    assert "mnist: still missing a.bin.gz" in capsys.readouterr().out
    assert command("import", "mnist", archives["a.bin.gz"]) == 0
    assert "mnist: all archives are there" in capsys.readouterr().out
    assert command("list") == 0
    assert "mnist          archived" in capsys.readouterr().out


def test_prepare_command(mnist, capsys):
    assert command("prepare", "mnist") == 0
    message = "mnist: 60 training and 20 test images, 10 classes\n"
    assert capsys.readouterr().out == message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["import", "mars", "file"], "NAME: unknown name 'mars'; known: mnist"),
        (["import", "mnist"], "no archive was named"),
        (["prepare", "mars"], "NAME: unknown name 'mars'; known: digits"),
    ],
)
def test_mistakes(args, message, capsys):
    assert command(*args) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    for args in ([], ["import"], ["list"], ["prepare"]):
        with pytest.raises(SystemExit) as ended:
            command(*args, "--help")
        assert ended.value.code == 0
    assert "checked against the size and checksum" in capsys.readouterr().out
