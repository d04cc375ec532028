"""Digests of arrays, for finding out whether all bits are what was written.

:func:`digest` is SHA-256 over a whole tree. A checkpoint needs more: several processes
write it, each its part of every array, and others may read it in other parts. There the
digest of an array is a sum over its elements, of their bits mixed with their places, so
that every process can add up what it has, whatever that is.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.distributed import add_up, is_primary, several, to_host

_BLOCK = 1 << 18  # elements at once, which stay in the cache
_SHA256 = 64  # digits of a digest of the first version, which was SHA-256


def digest(tree: Any) -> str:
    """SHA-256 over the paths, shapes, types and bits of the arrays in a tree.

    Of arrays that several processes share, one at a time is brought together.
    """
    table = {}
    for path, leaf in by_path(tree).items():
        array = np.asarray(to_host(leaf))
        facts = [str(array.dtype), list(array.shape)]
        table[path] = [*facts, hashlib.sha256(array.tobytes()).hexdigest()]
    return sha256_of_json({"facts": {}, "leaves": table})


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, as ``"opt_state/0/mu"``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def sha256_of_json(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def table_of(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Type, shape and digest of each array, over all processes.

    Example:
      >>> table_of({"a": np.zeros(2, np.float32)})
      {'a': ['float32', [2], '05488837c152df8d']}
    """
    sums = [_sum_of_first(leaf) for leaf in leaves.values()]
    return {
        path: [str(leaf.dtype), list(leaf.shape), f"{total:016x}"]
        for (path, leaf), total in zip(leaves.items(), add_up(sums), strict=True)
    }


def first_difference(
    leaves: Mapping[str, Any], table: Mapping[str, Sequence[Any]]
) -> str | None:
    """The path of the first array that is not as in the table, the same in all.

    Every process counts what it has of each array; where several have the same, all of
    them have to be right.
    """
    found = add_up([_sum_of_all(leaf) for leaf in leaves.values()])
    for (path, leaf), total in zip(leaves.items(), found, strict=True):
        written = table[path][-1]
        if len(written) == _SHA256:
            if hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() != written:
                return path
        elif total != int(written, 16) * _copies(leaf) % 2**64:
            return path
    return None


def is_old(table: Mapping[str, Sequence[Any]]) -> bool:
    """Whether digests are of whole arrays, so that only these can be checked."""
    return any(len(row[-1]) == _SHA256 for row in table.values())


def is_shared(leaf: Any) -> bool:
    """Whether an array lies on devices of several processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def sum_of_part(part: np.ndarray, start: Sequence[int], shape: Sequence[int]) -> int:
    """The digest of a part of an array: those of all parts add up to that of the whole.

    Args:
      part: with all axes of the array.
      start: where it begins along each of them.
      shape: of the whole array.

    Example:
      >>> x = np.arange(6.0).reshape(2, 3)
      >>> left = sum_of_part(x[:, :1], (0, 0), (2, 3))
      >>> right = sum_of_part(x[:, 1:], (0, 1), (2, 3))
      >>> (left + right) % 2**64 == sum_of_part(x, (0, 0), (2, 3))
      True
    """
    if part.size == 0:
        return 0
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = np.zeros((1,) * part.ndim, np.uint64)
    for axis, (begin, stride) in enumerate(zip(start, strides, strict=True)):
        along = np.arange(begin, begin + part.shape[axis], dtype=np.uint64)
        room = [-1 if axis == other else 1 for other in range(part.ndim)]
        places = places + (along * np.uint64(stride)).reshape(room)
    bits, places = _bits(part), np.broadcast_to(places, part.shape).reshape(-1, 1)
    total = 0
    for at in range(0, len(bits), _BLOCK):
        here = slice(at, at + _BLOCK)
        words = places[here] * np.uint64(bits.shape[1]) + np.arange(
            bits.shape[1], dtype=np.uint64
        )
        mixed = _mix(_mix(words) + bits[here].astype(np.uint64))
        total += int(np.sum(mixed, dtype=np.uint64))
    return total % 2**64


def _bits(x: np.ndarray) -> np.ndarray:
    """An array as (element, word) of unsigned integers."""
    width = x.dtype.itemsize
    kind = np.dtype(f"u{min(width, 8)}")
    flat = np.ascontiguousarray(x).reshape(-1)
    return flat.view(kind).reshape(len(flat), max(width // 8, 1))


def _mix(x: np.ndarray) -> np.ndarray:
    """Spreads each word over all of its bits: the last steps of SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sum_of_first(leaf: Any) -> int:
    """Of each element one copy, wherever in the world that is."""
    if not is_shared(leaf):
        return _sum(leaf) if is_primary() else 0
    firsts = [s for s in leaf.addressable_shards if s.replica_id == 0]
    return _sum_of_shards(leaf, {_region(s.index, leaf.shape): s.data for s in firsts})


def _sum_of_all(leaf: Any) -> int:
    """Of each element all copies, but one only in each process."""
    if not is_shared(leaf):
        return _sum(leaf)
    shards = {_region(s.index, leaf.shape): s.data for s in leaf.addressable_shards}
    return _sum_of_shards(leaf, shards)


def _copies(leaf: Any) -> int:
    """In how many processes each element is."""
    if not is_shared(leaf):
        return jax.process_count() if several() else 1
    places = leaf.sharding.devices_indices_map(leaf.shape).items()
    regions = [(d.process_index, _region(index, leaf.shape)) for d, index in places]
    return len(set(regions)) // len({region for _, region in regions})


def _region(
    index: Sequence[slice], shape: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    ends = (at.indices(size) for at, size in zip(index, shape, strict=True))
    return tuple((first, last) for first, last, _ in ends)


def _sum(leaf: Any) -> int:
    array = np.asarray(leaf)
    return sum_of_part(array, (0,) * array.ndim, array.shape)


def _sum_of_shards(leaf: Any, shards: Mapping[Any, Any]) -> int:
    return (
        sum(
            sum_of_part(np.asarray(data), [first for first, _ in region], leaf.shape)
            for region, data in shards.items()
        )
        % 2**64
    )
