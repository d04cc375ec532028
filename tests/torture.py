"""Kills training runs again and again; each has to end in the bits of one left alone.

``python tests/torture.py --kills 100`` sends SIGKILL at random moments: while a run
starts, restores, trains and writes checkpoints. It ends with code 1 at the first run
that comes out differently, and prints how many kills were survived.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_training import install, results, start, summary_of

from experiments.train import main as train

KILLS_A_RUN = 10
SETTINGS = (
    ["--optimizer", "adamp"],
    ["--optimizer", "adamsrt", "--validation-fraction", "0.1"],
    ["--optimizer", "swats", "--threshold", "0.05", "--sgd-milestones", "0.5"],
    ["--optimizer", "muon", "--dtype", "bfloat16"],
    ["--optimizer", "lamb", "--schedule", "cosine"],
)


def ending(folder: Path) -> tuple[list, str]:
    """All that a run comes out with: its figures and a digest of its state."""
    return results(folder), summary_of(folder)["state_sha256"]


def complete_checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.glob("checkpoints/*") if p.name.isdecimal()]


def newest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint, 0 without any."""
    return max((int(p.name) for p in complete_checkpoints(folder)), default=0)


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint, not the first, is half written."""
    unfinished = list(folder.glob("checkpoints/*.orbax-checkpoint-tmp"))
    return bool(unfinished) and newest_step(folder) > 0


def wait_for(process: subprocess.Popen, condition) -> bool:
    """Waits until it holds; False if the process ends before."""
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return True


def kill_when(process: subprocess.Popen, condition) -> bool:
    """Kills it while the condition holds; False if it ends before.

    What holds for some milliseconds may be over before a signal arrives. So the process
    is halted first, looked at while nothing moves, and let go on if it was too late.
    """
    while wait_for(process, condition):
        process.send_signal(signal.SIGSTOP)
        halted = os.WSTOPPED | os.WEXITED | os.WNOWAIT
        os.waitid(os.P_PID, process.pid, halted)
        if condition():
            process.kill()
            return True
        process.send_signal(signal.SIGCONT)
    return False


def kill_once(args: Sequence[str], folder: Path, moment: str, rng: random.Random):
    """Starts or resumes a run, and kills it; False if it has ended before.

    Moments are ``start`` (anywhere from the first import to the first steps),
    ``writing`` (a checkpoint is half on disk) and ``training`` (up to 0.2 seconds after
    a new checkpoint).
    """
    reached = newest_step(folder)
    with start(*args, "--out", str(folder), "--resume") as process:
        if moment == "start":
            time.sleep(rng.uniform(0, 12))
        else:
            process.stdout.readline()  # what it says when all is compiled
            if moment == "writing":
                kill_when(process, lambda: is_writing(folder))
            else:
                alive = wait_for(process, lambda: newest_step(folder) > reached)
                time.sleep(rng.uniform(0, 0.2) if alive else 0)
        process.kill()
        _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode == -signal.SIGKILL


def torture(kills: int, seed: int, top: Path) -> int:
    """Kills runs until that many kills are through; the number of runs it took."""
    rng, done, runs = random.Random(seed), 0, 0
    while done < kills:
        setting = SETTINGS[runs % len(SETTINGS)]
        args = ["--model", "tiny", "--epochs", "60", "--checkpoint-every", "1"]
        args += ["--seed", str(seed + runs), *setting]
        whole, folder = top / f"{runs}-whole", top / f"{runs}-killed"
        assert train([*args, "--out", str(whole)]) == 0
        for _ in range(min(KILLS_A_RUN, kills - done)):
            moment = rng.choice(["start", "writing", "training", "training"])
            if not kill_once(args, folder, moment, rng):
                break
            done += 1
            print(f"kill {done}, {moment}: step {newest_step(folder)}", flush=True)
        assert train([*args, "--out", str(folder), "--resume"]) == 0
        if ending(folder) != ending(whole):
            raise SystemExit(f"{' '.join(args)} ended in other bits: see {folder}")
        runs += 1
    return runs


def main() -> None:
    """Parses the options and says what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        top = Path(tempfile.mkdtemp(prefix="torture-"))
        runs = torture(options.kills, options.seed, top)
    print(f"{options.kills} kills in {runs} runs: every run ended in the same bits")


if __name__ == "__main__":
    sys.exit(main())
