"""Image folders packed in a tar archive, read without unpacking.

Nothing of an archive is ever written to disk, whatever paths it names.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from experiments.data.files import identity, sha256_of, shown
from experiments.data.layout import Item, Layout
from experiments.errors import UsageError


class Archive:
    """A tar archive with ``train/CLASS/*`` and ``test/CLASS/*``, compressed or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fingerprint(self) -> str:
        """Of the archive's size and times."""
        with self._damage_named():
            return repr(identity(self.path.stat()))

    def content(self) -> str:
        """Of the archive's bytes."""
        with self._damage_named():
            return sha256_of(self.path)

    def items(self, layout: Layout) -> Iterator[Item]:
        """The images, in the order of the archive.

        Raises:
          UsageError: the archive is damaged, ends before its end, or has a member
            that is no file or folder within it.
        """
        met: set[tuple[str, ...]] = set()
        with self._damage_named(), self.path.open("rb") as file:
            stream = _Forward(_decompressed(file))
            archive: Any = tarfile.TarFile(fileobj=cast(IO[bytes], stream))
            while (member := archive.next()) is not None:
                parts = self._checked(member)
                if member.isdir():
                    layout.add_folder(parts)
                elif layout.add_file(parts):
                    where = f"{self.path}: {shown('/'.join(parts))}"
                    if parts in met:
                        raise UsageError(f"{where}: is in the archive twice")
                    met.add(parts)
                    data = stream.read_at(member.offset_data, member.size)
                    yield Item(*parts, where=where, read=lambda data=data: data)
                archive.members.clear()  # or it would keep every member
            stream.check_end()

    def _checked(self, member: tarfile.TarInfo) -> tuple[str, ...]:
        """The parts of a member's path; a UsageError if it has no place here."""
        path = PurePosixPath(member.name)
        where = f"{self.path}: {shown(member.name)}"
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(f"{where}: this path leaves the archive's folder")
        if member.issym() or member.islnk():
            raise UsageError(f"{where}: a link; only files and folders are read")
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise UsageError(f"{where}: neither a regular file nor a folder")
        return path.parts

    @contextlib.contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Names the archive in whatever a damaged one makes its decoder raise."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise UsageError(f"{self.path}: {error.strerror}") from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"{self.path}: truncated, damaged or no tar archive ({reason})"
            ) from error


class _Forward:
    """What tarfile reads from: goes forward only, and knows the last block read.

    tarfile takes the end of the file, or a damaged header, for the end of the
    archive; a whole archive ends in blocks of zeros.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position, self._last = file, 0, b""

    def read(self, size: int) -> bytes:
        self._last = self._file.read(size)
        self._position += len(self._last)
        return self._last

    def read_at(self, position: int, size: int) -> bytes:
        self.seek(position)
        data = self.read(size)
        if len(data) < size:
            raise EOFError("it ends too early")
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position:
            passed = len(self._file.read(min(position - self._position, 1 << 20)))
            if not passed:
                raise EOFError("it ends too early")
            self._position += passed
        if self._position != position:
            raise ValueError("it goes back on itself")

    def check_end(self) -> None:
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise EOFError("it ends too early")
        while self._file.read(1 << 20):
            pass  # the checksum of a compressed file comes at its end


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """The tar in a file, by the first bytes of the file and not by its name."""
    head = file.read(6)
    file.seek(0)
    stream: Any
    if head.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=file)
    elif head.startswith(b"BZh"):
        stream = bz2.BZ2File(file)
    elif head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        stream = lzma.LZMAFile(file)  # noqa: SIM115  # closed with the file
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        stream = _zstandard(file)
    else:
        return file
    return cast(IO[bytes], io.BufferedReader(stream, 1 << 20))


def _zstandard(file: IO[bytes]) -> Any:
    try:
        from compression import zstd  # type: ignore  # of Python 3.14

        return zstd.ZstdFile(file)
    except ImportError:
        pass
    try:
        import zstandard  # type: ignore

        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    except ImportError:
        raise UsageError(
            f"{file.name}: compressed with zstd, which this Python cannot read: pip"
            " install zstandard, or compress it with xz"
        ) from None
