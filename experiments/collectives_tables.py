"""The tables of ``experiments.collectives``, as Markdown.

A ring all-reduce of ``B`` bytes over ``N`` devices moves ``2 B (N - 1) / N`` of them
through every link, in ``2 (N - 1)`` steps, each of which waits once for the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

HOSTS = (8, 64, 512)
LATENCY, BANDWIDTH = 5e-6, 50e9  # seconds to the next device, bytes a second


def ring_seconds(
    count: int, size: float, devices: int, *, latency: float, bandwidth: float
) -> float:
    """What all-reduces over a ring take.

    Args:
      count: how many.
      size: bytes of all of them, on one device.
      devices: in the ring.
      latency: seconds from a device to the next.
      bandwidth: bytes a second between them.

    Example:
      >>> ring_seconds(1, 1e9, 2, latency=0.0, bandwidth=1e9)
      1.0
    """
    hops = 2 * (devices - 1)
    return hops * (count * latency + size / devices / bandwidth)


def update_table(records: Sequence[Record]) -> str:
    """A row an optimizer: collectives and bytes of its update in each layout."""
    updates = [record for record in records if "optimizer" in record]
    layouts = list(dict.fromkeys(record["layout"] for record in updates))
    rows = []
    for name in dict.fromkeys(record["optimizer"] for record in updates):
        cells = {r["layout"]: _cell(r) for r in updates if r["optimizer"] == name}
        rows.append([f"`{name}`", *(cells[at] for at in layouts)])
    return _table(["optimizer", *layouts], rows)


def step_table(records: Sequence[Record]) -> str:
    """A row a mesh: collectives and bytes of a whole step of training."""
    rows = [
        [
            f"`--mesh {record['mesh']} --batch-norm {record['batch_norm']}`",
            *(_kind(record, kind) for kind in ("all-reduce", "all-gather")),
            _others(record),
        ]
        for record in records
        if "step" in record
    ]
    return _table(["layout", "all-reduce", "all-gather", "others"], rows)


def time_table(records: Sequence[Record]) -> str:
    """A row an optimizer that says something: microseconds on rings of devices.

    Weights are split along input channels, where groups are divided. What is no
    all-reduce is counted as if it were one, which is at most twice too much.
    """
    rows = []
    for record in records:
        if record.get("layout") == "input channels" and record["bytes"]:
            count = sum(record["counts"].values())
            cells = (_microseconds(count, record["bytes"], n) for n in HOSTS)
            rows.append([f"`{record['optimizer']}`", *cells])
    whole = [r for r in records if r.get("batch_norm") == "global" and "step" in r]
    for record in whole[:1]:
        count = sum(record["counts"].values())
        cells = (_microseconds(count, record["bytes"], n) for n in HOSTS)
        rows.insert(0, ["whole step, weights replicated", *cells])
    return _table(["what", *(f"{n} devices" for n in HOSTS)], rows)


def _microseconds(count: int, size: float, devices: int) -> str:
    seconds = ring_seconds(count, size, devices, latency=LATENCY, bandwidth=BANDWIDTH)
    return f"{seconds * 1e6:,.0f}"


def _cell(record: Record) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in record["counts"].items())
    return f"{counts}, {_size(record['bytes'])}" if counts else "-"


def _kind(record: Record, kind: str) -> str:
    if kind not in record["counts"]:
        return "-"
    return f"{record['counts'][kind]}, {_size(record['bytes_of'][kind])}"


def _others(record: Record) -> str:
    kinds = [k for k in record["counts"] if k not in ("all-reduce", "all-gather")]
    return "; ".join(f"{kind}: {_kind(record, kind)}" for kind in kinds) or "-"


def _size(size: int) -> str:
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
