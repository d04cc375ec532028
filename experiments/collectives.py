"""What a step says to other devices, read off the compiled program.

    python -m experiments.collectives --devices 8

compiles the update of a model's weights for a mesh of virtual CPU devices, with the
weights replicated, split along their input channels, along their output channels, and
along both, and prints for each optimizer how many collectives of each kind it has and
how many bytes they move; then the same of a whole step of training, for some of what
``--mesh`` and ``--batch-norm`` can be. Nothing is run. From the bytes follows what a
step costs on a network: the last table, by a model and not by a clock.

Exit codes: 0 done; 1 something broke; 2 an option cannot be used; 130 Ctrl-C.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import errors
from experiments.collectives_tables import step_table, time_table, update_table
from experiments.commands import run_command
from experiments.programs import (
    KINDS,
    Collective,
    build,
    collectives,
    compile_step,
    compile_update,
)

LAYOUTS = ("replicated", "input channels", "output channels", "both")
EXPORTED = (
    *("adams", "adamsrt", "adamg", "sgdmrt", "adamp", "sgdp", "hyperball", "adamh"),
    *("muonh", "rotational", "project_to_norm", "monitor_sphere", "swats"),
    *("swats-global", "swats-vector", "adabound", "lamb", "adam_abs"),
)
"""All optimizers of the library, and wrappers of optimizers."""
STEP_OF = "adamsrt"
OTHERS = ("sgd", "adam", "adamw", "rmsprop", "adabelief", "optax_lamb", "muon")
"""Optax's own, to compare with."""


@dataclass(frozen=True)
class Options:
    """Options of ``python -m experiments.collectives``."""

    model: str = "resnet18"
    """Model whose weights are updated."""
    devices: int = 8
    """Virtual devices; an even number."""
    optimizers: tuple[str, ...] = (*EXPORTED, *OTHERS)
    """Optimizers."""
    step: bool = True
    """Count whole steps of training, too, with adamsrt."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Keep the figures here, and take from it those that it has already: of the same
    model, devices and versions. Those of other versions are replaced."""


def measure_update(name: str, layout: str, mesh: Any, shapes: Any) -> dict[str, Any]:
    """The record of an update: one optimizer in one layout."""
    text = compile_update(build(name, shapes), shapes, layout, mesh)
    return {"optimizer": name, "layout": layout, **_summed(collectives(text))}


def measure_step(options: Options, mesh: str, batch_norm: str) -> dict[str, Any]:
    """The record of a whole step: one mesh, with batch norm of one kind."""
    size = 16 * options.devices
    text = compile_step(options.model, STEP_OF, mesh, batch_norm, size)
    return {
        "step": STEP_OF,
        "mesh": mesh,
        "batch_norm": batch_norm,
        **_summed(collectives(text)),
    }


def _summed(found: Sequence[Collective]) -> dict[str, Any]:
    of_kind = {kind: [c for c in found if c.kind == kind] for kind in KINDS}
    return {
        "counts": {kind: len(some) for kind, some in of_kind.items() if some},
        "bytes_of": {
            kind: sum(c.bytes for c in some) for kind, some in of_kind.items() if some
        },
        "bytes": sum(c.bytes for c in found),
        "largest": max((c.largest for c in found), default=0),
    }


def measure(options: Options, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Counts the collectives of every optimizer in every layout, and of steps."""
    import jax

    from experiments.bench.trees import model_shapes

    known = _kept(options)
    mesh = jax.make_mesh(
        (options.devices // 2, 2),
        ("in", "out"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    shapes = model_shapes(options.model)
    work = [
        ((name, layout), partial(measure_update, name, layout, mesh, shapes))
        for name in options.optimizers
        for layout in LAYOUTS
    ]
    if options.step:
        half = options.devices // 2
        kinds = [
            (f"data={options.devices}", "global"),
            (f"data={options.devices}", "local"),
            (f"data={half},fsdp=2", "global"),
            (f"fsdp={options.devices}", "global"),
        ]
        work += [
            ((f"step of {STEP_OF}", *kind), partial(measure_step, options, *kind))
            for kind in kinds
        ]
    records = []
    for key, count in work:
        known[key] = record = known.get(key) or count()
        records.append(record)
        told = ", ".join(f"{n} {kind}" for kind, n in record["counts"].items())
        say(f"{' '.join(key):34} {told or 'nothing':32} {record['bytes']:11,} B")
        if options.json is not None:
            _write(options, known.values())
    return records


def _key(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "step" in record:
        return f"step of {record['step']}", record["mesh"], record["batch_norm"]
    return record["optimizer"], record["layout"]


def _kept(options: Options) -> dict[tuple[str, ...], dict[str, Any]]:
    """The figures in the file, by what they are of; none if they are of other versions.

    Raises:
      UsageError: it is no file of this command, or has figures of another model.
    """
    if options.json is None or not options.json.exists():
        return {}
    try:
        found = json.loads(options.json.read_text())
        same = _facts(options).items() <= found.items()
        model, devices = found["model"], found["devices"]
        records = {_key(record): record for record in found["records"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise errors.UsageError(
            f"--json {options.json}: not a file of this command; delete it, or name"
            " another"
        ) from None
    if (model, devices) != (options.model, options.devices):
        raise errors.UsageError(
            f"--json {options.json}: has figures of {model} on {devices} devices; name"
            " another file"
        )
    return records if same else {}


def _facts(options: Options) -> dict[str, Any]:
    import jax
    import optax

    return {
        "model": options.model,
        "devices": options.devices,
        "jax": jax.__version__,
        "optax": optax.__version__,
    }


def _write(options: Options, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes all figures there are, optimizers in their order, then steps.

    All of it or, if that fails or the process is killed, none of it.
    """
    assert options.json is not None
    names = [*EXPORTED, *OTHERS]

    def place(record: Mapping[str, Any]) -> int:
        return names.index(record["optimizer"]) if "optimizer" in record else len(names)

    facts = {**_facts(options), "records": sorted(records, key=place)}
    unfinished = options.json.with_name(f"{options.json.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps(facts, indent=1) + "\n")
        os.replace(unfinished, options.json)
    finally:
        unfinished.unlink(missing_ok=True)


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    options = tyro.cli(
        Options,
        prog="python -m experiments.collectives",
        description=__doc__,
        args=args,
    )
    os.environ["JAX_PLATFORMS"] = "cpu"

    def act() -> int:
        check(options)
        import jax

        jax.config.update("jax_num_cpu_devices", options.devices)
        records = measure(options, partial(print, flush=True))
        for table in (update_table, step_table, time_table):
            print(f"\n{table(records)}")
        return errors.EXIT_FINISHED

    return run_command(act)


def check(options: Options) -> None:
    """Raises a UsageError for options that cannot be used."""
    from experiments.models import MODELS

    if options.devices < 2 or options.devices % 2:
        raise errors.UsageError(
            f"--devices must be an even number, got {options.devices}"
        )
    errors.check_name("--model", options.model, MODELS)
    for name in options.optimizers:
        errors.check_name("--optimizers", name, (*EXPORTED, *OTHERS))
    if options.json is not None and not options.json.parent.is_dir():
        raise errors.UsageError(f"--json {options.json}: there is no such folder")
    _kept(options)


if __name__ == "__main__":
    sys.exit(main())
