"""The import of archives, what is missing, and ``python -m experiments.data``."""

import gzip
import hashlib
import json
import struct
import sys
from pathlib import Path

import pytest
from image_files import some_images, write_folder

from experiments.data import (
    DATASETS,
    __main__,
    downloads,
    gzip_headers,
    load_dataset,
    load_streamed,
    preparing,
)
from experiments.errors import UsageError

pytestmark = pytest.mark.usefixtures("places")


def fails(match, name="mnist"):
    load = load_dataset if name in DATASETS else load_streamed
    with pytest.raises(UsageError, match=match) as caught:
        load(name)
    assert "\n" not in str(caught.value)


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


def test_damage_behind_a_rewritten_header_is_no_truncation(archives, tmp_path):
    packed = bytearray(gzip.compress(b"images" * 100, mtime=0))
    packed[-6] ^= 1
    (tmp_path / "a.bin.gz").write_bytes(packed)
    with pytest.raises(UsageError, match=r"a.bin.gz: wrong checksum, damaged"):
        downloads.import_archives("mnist", [tmp_path / "a.bin.gz"])
    (tmp_path / "a.bin.gz").write_bytes(packed[:-1])
    with pytest.raises(UsageError, match=r"a.bin.gz: truncated"):
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


def test_prepare_a_folder(tmp_path, capsys):
    write_folder(tmp_path / "pets", some_images(["cat", "dog"], 1, 1, (5, 7, 3)))
    name = f"folder:{tmp_path / 'pets'}"
    assert command("prepare", name, "--image-size", "4") == 0
    said = capsys.readouterr()
    assert said.out == f"{name}: 2 training and 2 test images, 2 classes\n"
    assert "decoded 4 images" in said.err
    assert command("prepare", name, "--image-size", "4") == 0
    assert "decoded" not in capsys.readouterr().err
    assert command("list") == 0
    assert str(tmp_path / "pets") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prepare", "folder:nowhere"], "folder:nowhere: No such file"),
        (["prepare", "folder:"], "NAME folder:PATH: names no folder"),
        (["prepare", "digits", "--image-size", "4"], "--image-size: only for folder:"),
        (["prepare", "imagenet2012", "--image-size", "4"], "--image-size: only for"),
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
