"""Results as tables, on the terminal and as Markdown: what stands in which column."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.bench.jax_side import IN_PLACE, NEW
from experiments.bench.scaling import OPTIMIZERS, fit_line
from experiments.bench.step import OURS, REFERENCE, REFERENCE_NEW, TORCH
from experiments.bench.targets import HERE

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of one measurement.

    Attributes:
      title: of the table; takes the settings.
      header: of the columns; the first one is the name of the row.
      cells: of a record, the columns after the first.
      notes: lines below the table.
    """

    title: str
    header: tuple[str, ...]
    cells: Callable[[Mapping[str, Any]], Sequence[str]]
    notes: Callable[[Sequence[Record]], Sequence[str]] = lambda _: ()

    def row(self, record: Record) -> list[str]:
        """All cells of a record; what could not be measured says why."""
        result = record["result"]
        if result.get("missing") and "ratio" not in result:
            blank = [""] * (len(self.header) - 2)
            return [record["row"], f"left out: {result['missing']}", *blank]
        return [record["row"], *self.cells(result)]


def tables(
    records: Sequence[Record],
) -> list[tuple[str, Columns, list[Record]]]:
    """Records that belong into one table together, with its title."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_title(record), []).append(record)
    return [(t, COLUMNS[some[0]["bench"]], some) for t, some in groups.items()]


def in_words(record: Record) -> str:
    """The row as one line."""
    columns = COLUMNS[record["bench"]]
    name, *cells = columns.row(record)
    pairs = zip(columns.header[1:], cells, strict=True)
    return f"{name}: " + ", ".join(f"{head} {cell}" for head, cell in pairs if cell)


def spread(sample: Mapping[str, Any] | None, digits: int = 2) -> str:
    """Median and quartiles."""
    if sample is None:
        return ""
    low, high = sample["quartiles"]
    return f"{sample['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def fits(records: Sequence[Record], axis: str) -> dict[str, tuple[float, float]]:
    """Of each optimizer, constant and slope of its seconds along an axis.

    Args:
      records: of ``scaling``.
      axis: ``"weights"`` or ``"leaves"``.
    """
    points = scaling_points(records, axis)
    if len(points) < 2:
        return {}
    sizes = [size for size, _ in points]
    return {
        name: fit_line(sizes, [seconds[name]["median"] for _, seconds in points])
        for name in OPTIMIZERS
    }


def scaling_points(
    records: Sequence[Record], axis: str
) -> list[tuple[int, Mapping[str, Any]]]:
    """Sizes along an axis, and the seconds of each optimizer there."""
    points = [
        (record["result"][axis], record["result"]["seconds"])
        for record in records
        if record["bench"] == "scaling"
        and record["settings"]["axis"] == axis
        and not record["result"]["missing"]
    ]
    return sorted(points, key=lambda point: point[0])


def _title(record: Record) -> str:
    settings = {k: v for k, v in record["settings"].items() if k != "rounds"}
    return COLUMNS[record["bench"]].title.format_map(_Words(settings))


class _Words(dict[str, Any]):
    """Settings as words."""

    def __getitem__(self, key: str) -> str:
        value = super().__getitem__(key)
        if key == "mu_dtype":
            return f", first moment {value}" if value else ""
        if key == "target":
            return "this machine" if value == HERE else f"one {value}"
        return f"{value:,}" if isinstance(value, int) else str(value)


def _step(result: Mapping[str, Any]) -> list[str]:
    seconds, ratios, torch = result["seconds"], result["ratio"], result["torch"]
    cells = [
        _ms(seconds[OURS]),
        result["reference"],
        spread(ratios[REFERENCE]),
        spread(ratios.get(REFERENCE_NEW)),
    ]
    if torch is None:
        return [*cells, "none known", "", ""]
    if torch["missing"]:
        return [*cells, torch["name"], torch["missing"], ""]
    return [*cells, torch["name"], _ms(seconds[TORCH]), spread(ratios[TORCH])]


def _compile(result: Mapping[str, Any]) -> list[str]:
    cells = [result["reference"]]
    for part in ("trace", "compile"):
        cells.append(f"{result['seconds'][part]['median']:.2f}")
        cells.append(spread(result["ratio"][part]))
    return cells


def _memory(result: Mapping[str, Any]) -> list[str]:
    return [
        f"{result['state_bytes'] / 2**20:.1f}",
        _number(result["ratio"]["state_to_adam"]),
        _number(result[IN_PLACE]["peak_to_needed"], 3),
        _number(result[NEW]["temporary"], 3),
        _number(result[IN_PLACE]["moved"], 1),
        _number(result[NEW]["moved"], 1),
        str(result["floor"] or ""),
    ]


def _train(result: Mapping[str, Any]) -> list[str]:
    images = result["images_per_second"]
    torch = spread(images["torch"], 0) if "torch" in images else result["missing"]
    shares = [
        f"{100 * result['share'][n]['median']:.1f} %" for n in ("adam", "adamsrt")
    ]
    watched = f"{100 * (result['ratio']['monitored']['median'] - 1):+.1f} %"
    ratio = spread(result["ratio"]["torch"])
    return [spread(images["jax"], 0), torch, ratio, *shares, watched]


def _scaling(result: Mapping[str, Any]) -> list[str]:
    times = [_ms(result["seconds"][name], 3) for name in OPTIMIZERS]
    ratios = [spread(result["ratio"][name]) for name in OPTIMIZERS[1:]]
    return [f"{result['weights']:,}", f"{result['leaves']:,}", *times, *ratios]


def _scaling_notes(records: Sequence[Record]) -> list[str]:
    lines = []
    for axis, unit in (("weights", "weight"), ("leaves", "leaf")):
        for name, (constant, slope) in fits(records, axis).items():
            per = (
                f"{1e9 * slope:.2f} ns"
                if axis == "weights"
                else f"{1e6 * slope:.1f} µs"
            )
            lines.append(
                f"{name}, against {axis}: {1e6 * constant:.0f} µs + {per} a {unit}"
            )
    return lines


def _bandwidth(result: Mapping[str, Any]) -> list[str]:
    return [
        spread(result["copy_gb_per_second"], 0),
        spread(result["update_gb_per_second"], 0),
        str(result["floor"]),
        spread(result["ratio"]["share_of_copy"]),
    ]


def _traffic(result: Mapping[str, Any]) -> list[str]:
    return [
        str(result["kernels"]),
        _number(result["arrays"]),
        result["reference"],
        _number(result["ratio"]["arrays"]),
        str(result["floor"] or ""),
        _number(result["peak_to_needed"], 3),
    ]


def _traffic_notes(records: Sequence[Record]) -> list[str]:
    places = {(r["result"]["device"], r["result"]["compiler"]) for r in records}
    return [
        f"{device}, compiled by {compiler or 'jaxlib'}" for device, compiler in places
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "not known" if value is None else f"{value:.{digits}f}"


def _ms(sample: Mapping[str, Any], digits: int = 2) -> str:
    return f"{1e3 * sample['median']:.{digits}f}"


COLUMNS: dict[str, Columns] = {
    "step": Columns(
        "An update of {model}, {dtype}{mu_dtype}, in place",
        (
            "update",
            "ms",
            "against",
            "ratio",
            "ratio, into new arrays",
            "in PyTorch",
            "its ms",
            "ratio to it",
        ),
        _step,
        lambda _: ["written here: plain PyTorch, from the equations, for comparison"],
    ),
    "compile": Columns(
        "Tracing and compiling the update of {model}",
        ("update", "against", "trace, s", "ratio", "compile, s", "ratio"),
        _compile,
    ),
    "memory": Columns(
        "Memory of the update of {model}, {dtype}{mu_dtype}",
        (
            "update",
            "state, MiB",
            "to Adam's",
            "peak, in place",
            "temporary, into new arrays",
            "moved, in place",
            "moved, into new arrays",
            "floor",
        ),
        _memory,
    ),
    "train": Columns(
        "Training on batches of {batch_size}, {dtype}",
        (
            "model",
            "images/s",
            "in PyTorch",
            "ratio to it",
            "share of adam",
            "share of adamsrt",
            "monitoring",
        ),
        _train,
    ),
    "scaling": Columns(
        "An update against the number of weights, and of leaves",
        (
            "size",
            "weights",
            "leaves",
            *(f"{name}, ms" for name in OPTIMIZERS),
            *(f"{name} to adam" for name in OPTIMIZERS[1:]),
        ),
        _scaling,
        _scaling_notes,
    ),
    "bandwidth": Columns(
        "Speed of an update of {weights} weights",
        ("update", "copy, GB/s", "update, GB/s", "arrays moved", "share of the copy"),
        _bandwidth,
    ),
    "traffic": Columns(
        "What the update of {model}, {dtype}{mu_dtype}, does to the memory of {target}",
        (
            "update",
            "kernels",
            "arrays read or written",
            "against",
            "ratio",
            "floor",
            "peak, in place",
        ),
        _traffic,
        _traffic_notes,
    ),
}
"""Of each measurement, what its table shows."""
