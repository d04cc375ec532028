"""The archives a data set is prepared from, where tensorflow-datasets looks for them.

Its download manager takes a file for downloaded when it lies under a name made of its
address and checksum, with a file ``.INFO`` beside it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from experiments.data.files import delete_leftovers, lock, new_file, sha256_of
from experiments.data.gzip_headers import ORIGINAL_HEADERS, without_header
from experiments.data.prepared import FILE_FORMAT, data_dir, import_tfds
from experiments.errors import UsageError


@dataclass(frozen=True)
class Needed:
    """An archive as tensorflow-datasets knows it.

    Attributes:
      dataset: the data set it is for.
      url: where it is on the internet.
      filename: its own name.
      size: in bytes.
      checksum: SHA-256.
      path: where the download manager looks for it.
      by_hand: whether it cannot be downloaded without an account.
    """

    dataset: str
    url: str
    filename: str
    size: int
    checksum: str
    path: Path
    by_hand: bool

    @property
    def info_path(self) -> Path:
        """The file that says what lies at :attr:`path`."""
        return self.path.with_name(f"{self.path.name}.INFO")

    def is_there(self) -> bool:
        """Whether the download manager will find it."""
        try:
            whole = self.path.stat().st_size == self.size
        except OSError:
            return False
        return whole and (self.by_hand or self.info_path.is_file())


def make_builder(name: str) -> Any:
    """The builder of tensorflow-datasets, for the file format that is read here."""
    tfds = import_tfds()
    return tfds.builder(name, data_dir=str(data_dir()), file_format=FILE_FORMAT)


def needed_archives(name: str) -> list[Needed]:
    """The archives that a data set is prepared from."""
    builder = make_builder(name)
    from tensorflow_datasets.core.download import resource  # type: ignore

    downloads = data_dir() / "downloads"
    by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS is not None
    found = []
    for url, info in builder.url_infos.items():
        filename = info.filename or PurePosixPath(urlparse(url).path).name
        path = downloads / name / resource.get_dl_fname(url, info.checksum)
        if by_hand:
            path = downloads / "manual" / filename
        found.append(
            Needed(name, url, filename, int(info.size), info.checksum, path, by_hand)
        )
    return sorted(found, key=lambda archive: archive.filename)


def preparing_lock(name: str) -> Any:
    """Held by the one process that changes a data set's files."""
    path = data_dir() / f"{name}.lock"
    return lock(path, f"it imports or prepares {name} in {data_dir()}")


@dataclass(frozen=True)
class Imported:
    """A file that was imported.

    Attributes:
      file: the file.
      archive: the archive that it is.
      restored: whether its gzip header had to be restored.
    """

    file: Path
    archive: Needed
    restored: bool


def import_archives(name: str, files: Sequence[Path]) -> list[Imported]:
    """Checks archives and copies them to where the download manager looks.

    Args:
      name: of the data set.
      files: some or all of its archives, whatever they are called.

    Raises:
      UsageError: a file is none of the data set's, truncated or damaged. Those before
        it have been copied.
    """
    needed = needed_archives(name)
    try:
        with preparing_lock(name):
            return [_import_one(name, file, needed) for file in files]
    except OSError as error:
        where = error.filename or data_dir()
        raise UsageError(f"{where}: {error.strerror or error}") from error


def _import_one(name: str, file: Path, needed: Sequence[Needed]) -> Imported:
    if not file.is_file():
        raise UsageError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
    size = file.stat().st_size
    candidates = [archive for archive in needed if archive.size == size]
    checksum = sha256_of(file) if candidates else ""
    for archive in candidates:
        if archive.checksum == checksum:
            _place(archive, lambda copy: shutil.copyfile(file, copy))
            return Imported(file, archive, restored=False)
    for archive, data in _with_headers(name, file, needed):
        if hashlib.sha256(data).hexdigest() == archive.checksum:
            _place(archive, lambda copy, data=data: copy.write_bytes(data))
            return Imported(file, archive, restored=True)
        candidates.append(archive)
    if candidates:
        checksum = checksum or sha256_of(file)
        raise UsageError(
            f"{file}: wrong checksum, damaged or another file: sha256 {checksum}, where"
            f" {candidates[0].filename} has {candidates[0].checksum}"
        )
    raise UsageError(f"{file}: {_why_not(name, file.name, size, needed)}")


def _with_headers(
    name: str, file: Path, needed: Sequence[Needed]
) -> Iterator[tuple[Needed, bytes]]:
    """What a file is with an archive's own gzip header, where that is as long as it."""
    headers = ORIGINAL_HEADERS.get(name)
    if headers is None or file.stat().st_size > 2 * max(a.size for a in needed):
        return
    rest = without_header(file.read_bytes())
    for archive in needed:
        header = headers.get(archive.filename)
        if rest is not None and header and len(header + rest) == archive.size:
            yield archive, header + rest


def _why_not(name: str, filename: str, size: int, needed: Sequence[Needed]) -> str:
    for archive in needed:
        if archive.filename == filename:
            problem = "truncated" if size < archive.size else "wrong size"
            return f"{problem}: {size:,} bytes, and it should have {archive.size:,}"
    known = ", ".join(archive.filename for archive in needed)
    return f"not an archive of {name}, which is made from {known}"


def _place(archive: Needed, write: Callable[[Path], object]) -> None:
    """Puts a file where it is looked for; the .INFO that makes it count comes last."""
    if archive.is_there():
        return
    delete_leftovers(archive.path)
    with new_file(archive.path) as made:
        write(made)
        if sha256_of(made) != archive.checksum:
            raise UsageError(f"{archive.filename}: changed while it was copied")
        made.chmod(0o644)
    if archive.by_hand:
        return
    info = {
        "dataset_names": [archive.dataset],
        "original_fname": archive.filename,
        "urls": [archive.url],
        "url_info": {
            "size": archive.size,
            "checksum": archive.checksum,
            "filename": archive.filename,
        },
    }
    with new_file(archive.info_path) as made:
        made.write_text(json.dumps(info))
        made.chmod(0o644)


def check_downloadable(missing: Sequence[Needed]) -> None:
    """Raises a UsageError if a download is bound to fail.

    tensorflow-datasets itself would try for minutes.
    """
    for archive in missing:
        lacks = f"{archive.dataset}: {archive.filename} is missing"
        how = f"run python -m experiments.data import {archive.dataset} FILES..."
        if archive.by_hand:
            raise UsageError(
                f"{lacks}; its publisher gives it to registered users alone: download"
                f" it by hand and {how}"
            )
        try:
            urlopen(Request(archive.url, method="HEAD"), timeout=10).close()
        except HTTPError:
            pass  # reached; whether it has the file, the download will say
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{lacks}, and {archive.url} cannot be reached"
                f" ({getattr(error, 'reason', error)}); without internet, get it"
                f" elsewhere and {how}"
            ) from None
