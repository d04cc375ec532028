"""Throws broken input at the commands; each case has to end as a user's mistake may.

``python tests/fuzz.py --cases 10000 --seed 0`` makes up command lines, configurations,
run folders, archives of images and checkpoints, most of them broken, and hands them to
the code that reads such things. A case may succeed, or end in an error of the project's
own with a message; any other exception, and a broken checkpoint that is taken for a
sound one, is a failure. A failure is printed with the number that repeats it:
``--case KIND:NUMBER``.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from image_files import some_images, write_tar
from run_folders import config_of, line_of, write_run

from experiments.checkpoints import Checkpoints
from experiments.config import parse, to_json
from experiments.data import load_dataset
from experiments.errors import CheckpointError, UsageError
from experiments.options import Config, Hyperparameters
from experiments.report.command import main as report

ROOT = "SPHERICAL_OPTAX_CACHE"
OPTIONS = [
    "--" + field.name.replace("_", "-")
    for kind in (Config, Hyperparameters)
    for field in dataclasses.fields(kind)
    if field.name not in ("hyperparameters", "sources", "config")
]
VALUES = [
    *("", " ", "-", "--", "0", "-1", "1", "7", "64", "1e-3", "1e999", "-0.0", "nan"),
    *("inf", "0x10", "1,2", "True", "none", "null", "[]", "{}", "0.5 0.1", "\u00e9"),
    *("adam", "adamsrt", "swats", "spherical", "digits", "folder:", "folder:/nowhere"),
    *("resnet18", "constant", "step", "float32", "10m", "9h", "data=2", "x" * 5000),
    *("../../etc/passwd", "\x00", "\n", "%s", "$(id)", "9" * 30, "--help-me"),
]
JSON = [None, True, 0, -1, 1e308, "", "adam", [], {}, [1, "x"], {"a": None}, 2**70]


class Fuzz:
    """Cases by kind; each is a function of a random generator and an empty folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._images = write_tar(work / "images.tar", some_images(shape=(8, 8, 3)))
        self._config = json.dumps(
            {"config": json.loads(json.dumps(to_json(parse([]))))}, indent=1
        )
        self.arrays = {"a": np.arange(6.0, dtype=np.float32), "b": np.ones((2, 3))}
        self._checkpoints = work / "checkpoints"
        kept = Checkpoints(self._checkpoints)
        for step in (1, 2):
            kept.save(step, self._arrays_at(step), {"step": step})
            kept.wait()
        kept.close()
        self.kinds = {
            "command_line": self.command_line,
            "configuration": self.configuration,
            "run_folder": self.run_folder,
            "archive": self.archive,
            "checkpoint": self.checkpoint,
        }

    def command_line(self, rng: random.Random, folder: Path) -> str:
        """Options and values at random, some of them good."""
        args = []
        for _ in range(rng.randrange(6)):
            option = rng.choice(OPTIONS)
            if rng.random() < 0.1:
                option = option[: rng.randrange(len(option))] + rng.choice("xq-=")
            value = rng.choice(VALUES)
            args += [f"{option}={value}"] if rng.random() < 0.5 else [option, value]
        parse(args)
        return "accepted"

    def configuration(self, rng: random.Random, folder: Path) -> str:
        """A config.json that is damaged, or holds values that cannot be."""
        path = folder / "config.json"
        path.write_bytes(self._damaged_json(rng, self._config))
        parse(["--config", str(path)])
        return "accepted"

    def run_folder(self, rng: random.Random, folder: Path) -> str:
        """A grid of runs, one of them damaged, for the report."""
        for seed in range(2):
            lines = [line_of(epoch, 0.3 * epoch) for epoch in (1, 2, 3)]
            write_run(folder / f"run{seed}", config_of("adam", seed), lines)
        victim = rng.choice(sorted((folder / "run0").iterdir()))
        action = rng.randrange(4)
        if action == 0:
            victim.unlink()
        elif action == 1 and victim.suffix == ".json":
            victim.write_bytes(self._damaged_json(rng, victim.read_text()))
        else:
            victim.write_bytes(damaged(rng, victim.read_bytes()))
        code = report([str(folder)])
        if code not in (0, 1, 2):
            raise AssertionError(f"report ended with {code}")
        return "accepted" if code == 0 else "refused"

    def archive(self, rng: random.Random, folder: Path) -> str:
        """A damaged archive of images."""
        path = folder / "images.tar"
        path.write_bytes(damaged(rng, self._images.read_bytes()))
        dataset = load_dataset(f"folder:{path}")
        assert len(dataset.train.images) == 12
        assert dataset.train.labels.max() < dataset.num_classes
        return "accepted"

    def checkpoint(self, rng: random.Random, folder: Path) -> str:
        """Checkpoints of which files are damaged: a sound one is found, or none."""
        place = folder / "checkpoints"
        shutil.copytree(self._checkpoints, place)
        files = sorted(p for p in place.rglob("*") if p.is_file())
        for victim in rng.sample(files, rng.randint(1, 3)):
            if rng.random() < 0.3:
                victim.unlink()
            else:
                victim.write_bytes(damaged(rng, victim.read_bytes()))
        kept = Checkpoints(place)
        try:
            found = kept.restore(self.arrays, lambda facts: None, lambda line: None)
        finally:
            kept.close()
        if found is None:
            return "refused"
        arrays, facts = found
        for name, expected in self._arrays_at(facts["step"]).items():
            np.testing.assert_array_equal(arrays[name], expected)
        return "accepted"

    def _arrays_at(self, step: int) -> dict:
        return {name: step * x for name, x in self.arrays.items()}

    def _damaged_json(self, rng: random.Random, text: str) -> bytes:
        """The text of a JSON object, damaged as text or as an object."""
        if rng.random() < 0.4:
            return damaged(rng, text.encode())
        whole = json.loads(text)
        place = whole
        while True:
            if not isinstance(place, dict) or not place:
                break
            key = rng.choice(sorted(place))
            inside = place[key]
            if isinstance(inside, dict) and inside and rng.random() < 0.8:
                place = inside
                continue
            if rng.random() < 0.3:
                del place[key]
            else:
                place[key] = rng.choice(JSON)
            break
        return json.dumps(whole).encode()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut short, flipped, doubled, put in or left out."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        action = rng.randrange(5)
        if action == 0:
            del data[at:]
        elif action == 1 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif action == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif action == 3:
            del data[at : at + rng.randrange(1, 600)]
        elif data:
            data[at:at] = data[: rng.randrange(1, 600)]
    return bytes(data)


def run(fuzz: Fuzz, kind: str, number: int) -> tuple[str, str | None]:
    """Runs a case; returns what came of it, and the traceback of a failure."""
    rng = random.Random(f"{kind}:{number}")
    folder = fuzz.work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shown = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
        ):
            warnings.simplefilter("ignore")
            came = fuzz.kinds[kind](rng, folder)
    except (UsageError, CheckpointError) as error:
        if not str(error).strip():
            return "failed", "an error without a message"
        return "refused", None
    except SystemExit as error:
        if error.code not in (0, 2):
            return "failed", f"exit code {error.code}"
        return "refused", None
    except BaseException:
        return "failed", traceback.format_exc()
    if "Traceback (most recent call last)" in shown.getvalue():
        return "failed", shown.getvalue()
    return came, None


def many(cases: int, seed: int, work: Path, limit: float = float("inf")) -> Counter:
    """Runs cases of all kinds in turn; prints failures; returns what came of them."""
    fuzz, counts = Fuzz(work), Counter()
    kinds, until = list(fuzz.kinds), time.monotonic() + limit
    for index in range(cases):
        kind, number = kinds[index % len(kinds)], seed + index // len(kinds)
        came, trouble = run(fuzz, kind, number)
        counts[kind, came] += 1
        if trouble:
            print(f"--case {kind}:{number}\n{trouble}", flush=True)
        if time.monotonic() > until:
            break
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", help="one case again, as archive:17")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        stack.enter_context(cache_in(Path(work) / "cache"))
        if args.case:
            kind, _, number = args.case.partition(":")
            came, trouble = run(Fuzz(Path(work)), kind, int(number))
            print(trouble or came)
            return int(trouble is not None)
        counts = many(args.cases, args.seed, Path(work))
    for (kind, came), count in sorted(counts.items()):
        print(f"{kind:14} {came:9} {count:6,}")
    failed = sum(count for (_, came), count in counts.items() if came == "failed")
    print(f"{sum(counts.values()):,} cases, {failed} failed")
    return int(failed > 0)


@contextlib.contextmanager
def cache_in(folder: Path):
    """The cache of decoded images, elsewhere for a while."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


if __name__ == "__main__":
    sys.exit(main())
