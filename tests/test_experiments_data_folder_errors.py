"""What is wrong with a folder or archive: one line that names the file."""

import os
import tarfile
import threading

import numpy as np
import pytest
from image_files import encoded, pixels, some_images, write_folder, write_tar

from experiments.data import imagefolder, load_dataset
from experiments.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("SPHERICAL_OPTAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path, **options):
    return load_dataset(f"folder:{path}", **options)


def fails(path, match, **options):
    """The one-line message of the error."""
    with pytest.raises(UsageError, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    real = imagefolder.decode

    def meddle(data, where, size):
        if "bee" in where:
            write_folder(path, {"train/ant/late.png": data})
        return real(data, where, size)

    monkeypatch.setattr(imagefolder, "decode", meddle)
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
