"""Image folders and tar archives: ``--dataset folder:PATH``."""

import io
import lzma
import os

import numpy as np
import pytest
from image_files import (
    change_keeping_times,
    encoded,
    pixels,
    some_images,
    write_folder,
    write_tar,
)
from PIL import Image

from experiments.data import imagefolder as imagefolder_module
from experiments.data import load_dataset
from experiments.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decodings(monkeypatch):
    """The sources that were decoded, as they are."""
    decoded = []
    real = imagefolder_module._decode_all

    def spy(source, *args):
        decoded.append(source.path)
        return real(source, *args)

    monkeypatch.setattr(imagefolder_module, "_decode_all", spy)
    return decoded


def load(path, **options):
    return load_dataset(f"folder:{path}", **options)


def fails(path, match, **options):
    """The one-line message of the error."""
    with pytest.raises(UsageError, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(first, second):
    return all(
        np.array_equal(getattr(getattr(first, split), kind), other)
        for split in ("train", "test")
        for kind, other in vars(getattr(second, split)).items()
    )


# What is loaded


def test_folder(tmp_path):
    files = some_images()
    dataset = load(write_folder(tmp_path / "set", files))
    assert dataset.num_classes == 3
    assert dataset.train.images.shape == (12, 32, 32, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for index, path in enumerate(files):  # made in the order in which they are loaded
        split, at = (dataset.train, index) if index < 12 else (dataset.test, index - 12)
        expected = np.asarray(Image.open(io.BytesIO(files[path])))
        assert np.array_equal(split.images[at], expected), path


def test_statistics_are_those_of_the_training_images(tmp_path):
    dataset = load(write_folder(tmp_path, some_images()))
    values = dataset.train.images.reshape(-1, 3).astype(float)
    assert dataset.mean == pytest.approx(values.mean(0))
    assert dataset.std == pytest.approx(values.std(0))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_are_read_as_the_folder(tmp_path, mode):
    files = some_images()
    folder = load(write_folder(tmp_path / "set", files))
    shuffled = dict(sorted(files.items(), key=lambda item: item[1]))
    assert same(load(write_tar(tmp_path / "data", shuffled, mode)), folder)


def test_lzma_archive(tmp_path):
    tar = write_tar(tmp_path / "a.tar", some_images())
    packed = lzma.compress(tar.read_bytes(), format=lzma.FORMAT_ALONE)
    (tmp_path / "a.tar.lzma").write_bytes(packed)
    assert same(load(tmp_path / "a.tar.lzma"), load(tar))


def test_zstandard_archive(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    tar = write_tar(tmp_path / "a.tar", some_images())
    packed = zstandard.ZstdCompressor().compress(tar.read_bytes())
    (tmp_path / "a.tar.zst").write_bytes(packed)
    assert same(load(tmp_path / "a.tar.zst"), load(tar))
    (tmp_path / "b.tar.zst").write_bytes(packed[: len(packed) // 2])
    fails(tmp_path / "b.tar.zst", "b.tar.zst: truncated, damaged")


def test_gray_images_have_one_channel_unless_others_have_colour(tmp_path):
    gray = some_images(shape=(8, 8, 1))
    dataset = load(write_folder(tmp_path / "gray", gray))
    assert dataset.train.images.shape == (12, 8, 8, 1)
    mixed = {**gray, "train/bee/0.png": encoded(pixels(5, (8, 8, 3)))}
    coloured = load(write_folder(tmp_path / "mixed", mixed)).train.images
    assert np.array_equal(coloured[0], np.repeat(dataset.train.images[0], 3, -1))
    assert np.array_equal(coloured[4], pixels(5, (8, 8, 3)))


def test_palettes_and_transparency_become_colours(tmp_path):
    image = Image.fromarray(pixels(0))
    files = some_images()
    for path, other in (
        ("train/ant/0.png", image.convert("RGBA")),
        ("train/ant/1.png", image.quantize(16)),
    ):
        file = io.BytesIO()
        other.save(file, "PNG")
        files[path] = file.getvalue()
    images = load(write_folder(tmp_path, files)).train.images
    assert np.array_equal(images[0], pixels(0))
    assert np.array_equal(images[1], np.asarray(image.quantize(16).convert("RGB")))


def test_photographs_held_sideways_are_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels(0, (8, 8, 3))).save(file, "PNG", exif=exif)
    files = some_images(shape=(8, 8, 3)) | {"train/ant/0.png": file.getvalue()}
    image = load(write_folder(tmp_path, files)).train.images[0]
    assert np.array_equal(image, np.rot90(pixels(0, (8, 8, 3)), -1))


def test_images_of_32_pixels_are_augmented_as_cifar_others_not(tmp_path):
    small = load(write_folder(tmp_path / "8", some_images(shape=(8, 8, 3))))
    cifar = load(write_folder(tmp_path / "32", some_images()))
    assert small.augment.__name__ == "unchanged"
    assert cifar.augment.__name__ == "crop_and_flip"


def test_image_size_crops_the_middle(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 16:44] = 200
    files = some_images(shape=(10, 10, 3)) | {"train/ant/0.png": encoded(wide)}
    folder = write_folder(tmp_path, files)
    fails(folder, "train/ant/0.png: 60x20 pixels, and .*has 10x10: --image-size N")
    dataset = load(folder, image_size=10)
    assert dataset.train.images.shape[1:] == (10, 10, 3)
    assert (dataset.train.images[0] == 200).all()
    assert np.array_equal(dataset.train.images[1], pixels(1, (10, 10, 3)))
    fails(folder, "--image-size must be at least 1, got 0", image_size=0)


def test_what_systems_leave_behind_is_no_image(tmp_path):
    clutter = dict.fromkeys(
        ["train/.DS_Store", "train/ant/.hidden", "test/Thumbs.db", "README.txt"], b"x"
    )
    files = some_images()
    plain = load(write_folder(tmp_path / "plain", files))
    assert same(load(write_folder(tmp_path / "set", files | clutter)), plain)
    dotted = {f"./{path}": data for path, data in (files | clutter).items()}
    assert same(load(write_tar(tmp_path / "a.tar", dotted)), plain)


# The second start, and a source that has changed


@pytest.mark.parametrize("packed", [False, True])
def test_decoded_once(tmp_path, decodings, packed):
    files = some_images()
    make = write_tar if packed else write_folder
    path = make(tmp_path / "set", files)
    assert same(load(path), load(path))
    assert len(decodings) == 1


def test_the_content_counts_and_not_its_place(tmp_path, decodings):
    path = write_tar(tmp_path / "a.tar", some_images())
    load(path)
    os.utime(path, (0, 0))
    load(path)
    path.rename(tmp_path / "b.tar")
    load(tmp_path / "b.tar")
    assert len(decodings) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_a_change_is_noticed_even_behind_its_times(tmp_path, decodings, packed):
    files = some_images()
    path = write_folder(tmp_path / "set", files)
    changed = path / "train/bee/1.png"
    data = encoded(pixels(1000))
    if packed:
        path = changed = write_tar(tmp_path / "a.tar", files)
        data = write_tar(
            tmp_path / "b", {**files, "train/bee/1.png": data}
        ).read_bytes()
    assert len(data) == changed.stat().st_size  # or the size would give it away
    first = load(path)
    change_keeping_times(changed, data)
    second = load(path)
    assert len(decodings) == 2
    assert np.array_equal(second.train.images[5], pixels(1000))
    assert np.array_equal(second.train.images[4], first.train.images[4])


def test_a_new_image_is_noticed(tmp_path):
    path = write_folder(tmp_path, some_images())
    assert len(load(path).train) == 12
    write_folder(path, {"train/ant/new.png": encoded(pixels(7))})
    assert len(load(path).train) == 13
