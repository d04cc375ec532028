"""Image folders and tar archives: ``--dataset folder:PATH``."""

import io
import lzma
import os
import tarfile
import threading

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


# Errors: one line that names the file


def test_missing(tmp_path):
    fails(tmp_path / "none", "folder:.*none: No such file")
    fails("", "folder:PATH: names no folder")


def test_neither_folder_nor_archive(tmp_path):
    (tmp_path / "text").write_text("hello " * 500)
    fails(tmp_path / "text", "text: truncated, damaged or no tar archive")
    (tmp_path / "empty").touch()
    fails(tmp_path / "empty", "empty: truncated, damaged or no tar archive")
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "pipe: neither a folder nor a file")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_archives(tmp_path, mode, cache):
    whole = write_tar(tmp_path / "whole", some_images(), mode).read_bytes()
    path = tmp_path / "cut"
    lengths = {len(whole) // 4, len(whole) // 2, len(whole) - 9000, len(whole) - 3}
    if mode == "w":  # the end is 20 blocks of zeros; one is enough to be complete
        end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
        lengths = {len(whole) // 2, end, end - 512, 512, 1024, 1024 + 100}
    for length in lengths:
        path.write_bytes(whole[:length])
        fails(path, "cut: truncated, damaged")
    assert not list(cache.glob("arrays/*"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damage_within_an_archive(tmp_path, mode):
    data = bytearray(write_tar(tmp_path / "a", some_images(), mode).read_bytes())
    for index in range(len(data) // 2, len(data) // 2 + 8):
        data[index] ^= 0xFF
    (tmp_path / "b").write_bytes(data)
    fails(tmp_path / "b", "b.*: (truncated, damaged|unreadable image)")


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", some_images())
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        fifth = archive.getmembers()[5]
    data[fifth.offset + 10] ^= 0xFF
    path.write_bytes(data)
    fails(path, "a.tar: truncated, damaged")


def member(name, kind, **fields):
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (member("../up.png", tarfile.REGTYPE), "leaves the archive's folder"),
        (
            member("train/ant/../../../x", tarfile.REGTYPE),
            "leaves the archive's folder",
        ),
        (member("/etc/x.png", tarfile.REGTYPE), "leaves the archive's folder"),
        (member("train/ant/a", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (member("train/ant/a", tarfile.LNKTYPE, linkname="train/ant/0.png"), "a link"),
        (member("train/ant/a", tarfile.CHRTYPE), "neither a regular file"),
        (member("train/ant/a", tarfile.BLKTYPE), "neither a regular file"),
        (member("train/ant/a", tarfile.FIFOTYPE), "neither a regular file"),
        (member("train/ant/0.png", tarfile.REGTYPE), "is in the archive twice"),
        (member("train/ant/\x1b[2Jx", tarfile.REGTYPE), r"ant/\\x1b\[2Jx: unreadable"),
    ],
)
def test_members_that_have_no_place_in_an_archive(tmp_path, extra, message):
    path = write_tar(tmp_path / "a.tar", some_images(), extra=[extra])
    fails(path, f"a.tar: .*{message}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "cache"]


def test_unreadable_images(tmp_path):
    jpeg = encoded(pixels(0), "JPEG")
    for name, data in (
        ("text", b"not an image"),
        ("empty", b""),
        ("cut", jpeg[: len(jpeg) // 2]),
        ("deep", encoded(np.zeros((32, 32), np.uint16))),
    ):
        files = some_images() | {f"train/bee/{name}.png": data}
        fails(write_folder(tmp_path / name, files), f"train/bee/{name}.png: unreadable")
        path = write_tar(tmp_path / f"{name}.tar", files)
        fails(path, f"{name}.tar: train/bee/{name}.png: unreadable image")


def test_files_that_are_not_regular(tmp_path):
    path = write_folder(tmp_path, some_images())
    os.mkfifo(path / "train/ant/pipe")
    fails(path, "train/ant/pipe: not a regular file")
    (path / "train/ant/pipe").unlink()
    (path / "train/ant/dangling").symlink_to("nowhere")
    fails(path, "train/ant/dangling: No such file")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/ant/0.png": b""}, "has no test/CLASS/IMAGE"),
        ({"images/0.png": b""}, "has no train/CLASS/IMAGE"),
        (some_images() | {"train/stray.png": b""}, "train/stray.png does not lie in"),
        (some_images() | {"test/ant/a/b.png": b""}, "test/ant/a/b.png does not lie in"),
        (
            some_images() | {"test/dog/0.png": encoded(pixels(0))},
            "train/ lacks dog; train/ and test/ need the same classes",
        ),
        (
            some_images() | {"train/dog/0.png": encoded(pixels(0))},
            "test/ lacks dog; train/ and test/ need the same classes",
        ),
    ],
)
def test_layout(tmp_path, files, message, packed):
    readable = {path: data or encoded(pixels(0)) for path, data in files.items()}
    make = write_tar if packed else write_folder
    assert "set" in fails(make(tmp_path / "set", readable), message)


def test_a_class_without_images(tmp_path):
    path = write_folder(tmp_path / "set", some_images())
    (path / "train/dog").mkdir()
    fails(path, "set: class train/dog has no image")
    extra = [member("test/dog", tarfile.DIRTYPE)]
    fails(write_tar(tmp_path / "a.tar", some_images(), extra=extra), "test/dog has no")


def test_changed_while_it_is_read(tmp_path, monkeypatch, cache):
    path = write_folder(tmp_path / "set", some_images())
    real = imagefolder_module.decode

    def meddle(data, where, size):
        if "bee" in where:
            write_folder(path, {"train/ant/late.png": data})
        return real(data, where, size)

    monkeypatch.setattr(imagefolder_module, "decode", meddle)
    fails(path, "set: changed while it was read")
    assert not list(cache.glob("arrays/*"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "file"))
    path = write_folder(tmp_path / "set", some_images())
    fails(path, "file/.*SPHERICAL_OPTAX_CACHE can name another folder")


def test_threads_end_with_an_error(tmp_path):
    before = threading.active_count()
    files = some_images(train=300) | {"train/ant/000.png": b"no image"}
    fails(write_folder(tmp_path, files), "ant/000.png")
    assert threading.active_count() == before
