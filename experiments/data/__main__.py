"""Data sets on this machine.

    python -m experiments.data list
    python -m experiments.data import fashion_mnist FILES...
    python -m experiments.data prepare cifar10
    python -m experiments.data prepare folder:PATH

Exit codes: 0 done; 1 something broke; 2 a name or file cannot be used; 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import errors
from experiments.commands import run_command
from experiments.data import (
    STREAMED,
    check_dataset_name,
    load_dataset,
    load_streamed,
)
from experiments.data.downloads import import_archives, needed_archives
from experiments.data.listing import list_datasets
from experiments.data.preparing import has_tensorflow
from experiments.data.recipes import RECIPES

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Files = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES...")
]


@dataclass(frozen=True)
class List:
    """Show which data sets are available, prepared, or missing and why."""

    def run(self) -> None:
        """Prints the table."""
        print(list_datasets())


@dataclass(frozen=True)
class Import:
    """Take a data set's archives from files, for machines without internet.

    Each file is checked against the size and checksum that tensorflow-datasets knows
    and copied to where its download manager looks. With the last one the data set is
    prepared, if TensorFlow is installed.
    """

    name: Name
    """Data set, as tensorflow-datasets has it: fashion_mnist, cifar10, ..."""
    files: Files
    """Its archives, some or all, as they were published."""
    prepare: bool = True
    """Prepare the data set when all of its archives are there."""

    def run(self) -> None:
        """Imports, says what is still missing, prepares."""
        errors.check_name("NAME", self.name, RECIPES)
        if not self.files:
            raise errors.UsageError("FILES...: no archive was named")
        for done in import_archives(self.name, self.files):
            how = "; its original gzip header put back" if done.restored else ""
            print(f"{done.file}: {done.archive.filename}, checksum right{how}")
        missing = [a.filename for a in needed_archives(self.name) if not a.is_there()]
        if missing:
            print(f"{self.name}: still missing {', '.join(missing)}")
        elif self.prepare and has_tensorflow():
            Prepare(self.name).run()
        else:
            print(
                f"{self.name}: all archives are there; python -m experiments.data"
                f" prepare {self.name} prepares it, with TensorFlow"
            )


@dataclass(frozen=True)
class Prepare:
    """Load a data set as training does: download, prepare and decode what is not."""

    name: Name
    """Data set; a folder or archive of yours is folder:PATH."""
    image_size: int | None = None
    """folder:PATH: height and width to bring all images to, as in training."""

    def run(self) -> None:
        """Loads the data set and says what is in it."""
        check_dataset_name(self.name, "NAME")
        if self.name in STREAMED and self.image_size is None:
            dataset = load_streamed(self.name)
        else:
            dataset = load_dataset(self.name, image_size=self.image_size)
        print(
            f"{self.name}: {len(dataset.train):,} training and {len(dataset.test):,}"
            f" test images, {dataset.num_classes} classes"
        )


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
)


def main(args: Sequence[str] | None = None) -> int:
    """The command: returns its exit code."""
    prog = "python -m experiments.data"
    command = tyro.cli(Command, prog=prog, description=__doc__, args=args)  # type: ignore

    def act() -> int:
        command.run()
        return errors.EXIT_FINISHED

    return run_command(act)


if __name__ == "__main__":
    sys.exit(main())
