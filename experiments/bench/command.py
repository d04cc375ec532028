"""Measures what a step of each optimizer costs, beside Optax's and PyTorch's own.

    python -m experiments.bench step

WHAT is one of

  step       seconds of an update of ResNet-18, in place and into new arrays, as a
             ratio to optax.adam or optax.sgd and to a PyTorch counterpart, where that
             is installed
  compile    seconds to trace and to compile the update of DenseNet-121
  memory     bytes that the compiled update needs and moves
  scaling    time against the number of weights and of leaves
  bandwidth  the speed of an update of 100 million weights, beside that of a copy
  train      images a second in training, beside the same model in PyTorch
  all        all of these
  traffic    what the compiled update reads and writes in memory; with --target on an
             accelerator that is not here
  table      the results in --json as Markdown; with --readme a summary into that file

What is compared alternates in one process, after a warm-up; shown are medians with
quartiles, and ratios are taken round by round. With --json finished rows are kept, and
the same command goes on where it was stopped; what was measured on another machine,
with other versions or another state of the library is measured again.

Exit codes: 0 all is measured; 1 something broke; 2 an option cannot be used; 4 SIGTERM;
5 rows are left: time is up; 130 Ctrl-C.
"""

import shlex
import sys
import time
from collections.abc import Sequence

import jax
import tyro

from experiments import errors
from experiments.bench import machine, show
from experiments.bench.figures import draw
from experiments.bench.limit import calling_at
from experiments.bench.options import Options, check
from experiments.bench.plan import Task, plan
from experiments.bench.store import Job, Store, read
from experiments.bench.tables import Record, in_words
from experiments.bench.targets import HERE, device_of
from experiments.commands import run_command
from experiments.compiling import compiling_once
from experiments.starting import leave_at_once
from experiments.timing import process_start
from experiments.values import parse_limit

_ALL_LIMIT = "9m"


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    began = process_start() if args is None else time.monotonic()
    options = tyro.cli(
        Options, prog="python -m experiments.bench", description=__doc__, args=args
    )
    words = sys.argv[1:] if args is None else args
    command = shlex.join(["python", "-m", "experiments.bench", *words])

    def act() -> int:
        check(options)
        if options.what == "table":
            return table(options)
        return bench(options, Store(options.json, command), began)

    return run_command(
        act, interrupted="interrupted; with --json the same command goes on"
    )


def bench(options: Options, store: Store, began: float) -> int:
    """Measures what is not yet measured, and shows it; returns the exit code."""
    if options.target != HERE:
        jax.config.update("jax_platforms", "cpu")
        device_of(options.target)
    limit = options.time_limit or (_ALL_LIMIT if options.what == "all" else None)
    end = began + parse_limit("--time-limit", limit)
    _warn_if_busy()
    tasks, records = plan(options), []

    def finish() -> int:
        return _finish(options, records, sum(len(task.jobs) for task in tasks))

    # Programs that many rows have in common, as of references, are compiled once.
    with calling_at(end, lambda: leave_at_once(finish())), compiling_once():
        machine.map_memory()
        work(tasks, store, end, options.overwrite, records)
    return finish()


def _finish(options: Options, records: Sequence[Record], rows: int) -> int:
    """Shows what is done of so many rows; returns the exit code."""
    show.show(records)
    if options.figures:
        draw(records, options.figures)
    if left := rows - len(records):
        then = "the same command goes on" if options.json else "--json keeps the others"
        print(f"time is up: {left} of {rows} rows are left; {then}")
        return errors.EXIT_OUT_OF_TIME
    return errors.EXIT_FINISHED


def _warn_if_busy() -> None:
    load, cores = machine.load(), machine.cores()
    if load and load[0] > 0.5 * cores:
        print(
            f"load average {load[0]} on {cores} cores: other processes distort what is"
            " measured now",
            file=sys.stderr,
        )


def table(options: Options) -> int:
    """Shows what is in a file as Markdown; returns the exit code."""
    assert options.json is not None  # checked
    document = read(options.json)
    if options.readme:
        show.put_into(options.readme, show.summary_markdown(document))
    else:
        print(show.to_markdown(document))
    if options.figures:
        draw(document["records"], options.figures)
    return errors.EXIT_FINISHED


def work(
    tasks: Sequence[Task],
    store: Store,
    end: float,
    overwrite: bool,
    records: list[Record],
) -> None:
    """Does the tasks for which there is time.

    Args:
      tasks: in order.
      store: has what is done, and gets what is done here.
      end: no task begins that would end later, on the clock of ``time.monotonic``.
      overwrite: do again what is done.
      records: gets those of the rows that are done, task by task.
    """
    pace = 1.0  # seconds that tasks take, over those they were guessed to
    for number, task in enumerate(tasks, start=1):
        found: dict[str, Record] = {}
        if not overwrite:
            known = ((job.row, store.find(job)) for job in task.jobs)
            found = {row: record for row, record in known if record}
        wanted = [job for job in task.jobs if job.row not in found]
        guess = task.seconds * len(wanted)
        if wanted and time.monotonic() + pace * guess <= end:
            began = time.monotonic()
            for record in _measure(task, wanted, store):
                found[record["row"]] = record
                print(f"[{number}/{len(tasks)}] {_line(record)}", flush=True)
            pace = max(0.5 * pace, (time.monotonic() - began) / guess)
        records += found.values()


def _measure(task: Task, jobs: Sequence[Job], store: Store) -> list[Record]:
    """Measures rows of a task, and keeps them."""
    store.check_writable()
    load, began = machine.load(), time.monotonic()
    results = task.measure([job.row for job in jobs])
    seconds = (time.monotonic() - began) / len(jobs)
    return [store.add(job, results[job.row], seconds, load) for job in jobs]


def _line(record: Record) -> str:
    return f"{record['bench']} {in_words(record)} [{record['took_seconds']:.0f} s]"
