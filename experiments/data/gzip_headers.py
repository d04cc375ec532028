"""Original headers of gzip archives, put back where a mirror has rewritten them.

A mirror that packs or serves archives again may leave out the file name and time in
their headers. Not a bit of the compressed data has changed then, but the checksum of
the file has. With the original header it is the original file; that its checksum is
right is for the caller to check.
"""

import struct
from collections.abc import Mapping

_MAGIC = b"\x1f\x8b\x08"  # gzip, deflated
_HAS_CRC, _HAS_EXTRA, _HAS_NAME, _HAS_COMMENT = 2, 4, 8, 16


def _header(name: str, time: int) -> bytes:
    """As ``gzip`` on Unix writes it, without its options."""
    flags = struct.pack("<BIBB", _HAS_NAME, time, 0, 3)
    return _MAGIC + flags + name.encode() + b"\0"


# The times were found by search: with them the files have the published checksums.
ORIGINAL_HEADERS: Mapping[str, Mapping[str, bytes]] = {
    "fashion_mnist": {
        f"{name}.gz": _header(name, time)
        for name, time in (
            ("train-images-idx3-ubyte", 1504176606),
            ("train-labels-idx1-ubyte", 1504176606),
            ("t10k-images-idx3-ubyte", 1504176627),
            ("t10k-labels-idx1-ubyte", 1504176627),
        )
    }
}
"""Data set to archive to its header."""


def without_header(data: bytes) -> bytes | None:
    """What follows the header; None if it is no gzip file."""
    if len(data) < 10 or not data.startswith(_MAGIC):
        return None
    flags, end = data[3], 10
    if flags & _HAS_EXTRA:
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for flag in (_HAS_NAME, _HAS_COMMENT):
        if flags & flag:
            end = data.find(b"\0", end) + 1
            if end == 0:
                return None
    if flags & _HAS_CRC:
        end += 2
    return data[end:]
