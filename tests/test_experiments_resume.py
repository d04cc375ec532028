"""Runs that are stopped, killed, or find their files damaged, and go on."""

import errno
import json
import random
import resource
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
from tiny_training import STEPS, install, results, start, summary_of
from torture import (
    complete_checkpoints,
    ending,
    is_writing,
    kill_when,
    newest_step,
    wait_for,
)

from experiments import train as command
from experiments.checkpoints import Checkpoints
from experiments.stopping import TERMINATED, StoppedRun, StopRequest
from experiments.train import main

ARGS = ["--model", "tiny", "--epochs", "3"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command in this process: its exit code and its folder."""
    install(monkeypatch)
    out = tmp_path / "run"

    def train(*options, folder=out):
        return main([*ARGS, "--out", str(folder), *options]), folder

    return train


@pytest.fixture
def stop_at(monkeypatch):
    """Has a run stopped when it looks whether to stop for the so-manieth time."""

    def stop_at(looks):
        seen = 0

        def check(self, seconds=0.0, due=False):
            nonlocal seen
            seen += 1
            if seen == looks:
                raise StoppedRun(TERMINATED)
            return due

        monkeypatch.setattr(StopRequest, "check", check)

    return stop_at


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Folders of runs that several tests look at, by name; none of them changes one."""
    top = tmp_path_factory.mktemp("shared")
    made = {}

    def shared(name, make):
        if name not in made:
            made[name] = top / str(len(made))
            make(made[name])
        return made[name]

    return shared


@pytest.fixture
def never_stopped(train, shared):
    """How a run of these options ends that is not stopped."""

    def never_stopped(*options):
        def make(folder):
            assert train(*options, folder=folder)[0] == 0

        return ending(shared(options, make))

    return never_stopped


@pytest.mark.parametrize("looks", [1, 2, 30, 46, 47, 68])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    looks, train, stop_at, never_stopped
):
    """Before steps 1, 2, 29 and 45, in the test after epoch 2, before the last step."""
    whole = never_stopped()
    stop_at(looks)
    code, folder = train()
    assert code == 4
    summary = summary_of(folder)
    assert (summary["status"], summary["epochs"]) == ("terminated", (looks - 1) // 23)
    assert not (folder / "learning_curves.png").exists()
    stop_at(None)
    assert train("--resume")[0] == 0
    assert ending(folder) == whole
    steps = looks - 1 - (looks - 1) // 23
    assert summary_of(folder)["resumed_at_steps"] == [steps]
    assert (folder / "learning_curves.png").exists()


@pytest.mark.parametrize("optimizer", ["swats", "muon", "adamp", "sgd"])
def test_stopped_twice_with_every_kind_of_state(
    optimizer, train, stop_at, never_stopped, shared
):
    args = ["--optimizer", optimizer, "--validation-fraction", "0.1"]
    if optimizer == "adamp":
        args += ["--monitor"]
    if optimizer == "swats":
        args += ["--threshold", "0.05", "--schedule", "step"]
        args += ["--sgd-milestones", "0.5"]
    whole = never_stopped(*args)
    for looks in (17, 22):
        stop_at(looks)
        code, folder = train(*args, "--resume", "--checkpoint-every", "1")
        assert code == 4
    stop_at(None)
    assert train(*args, "--resume")[0] == 0
    assert ending(folder) == whole
    if optimizer == "swats":
        folders = (folder, shared(tuple(args), None))
        tables = [(f / "switch_points.csv").read_text() for f in folders]
        assert tables[0] == tables[1]
        assert len(tables[0].splitlines()) > 1


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("an epoch ends", "metrics.jsonl"),
        ("a checkpoint is due", "its config.json is gone, with the folder or without"),
        ("SIGTERM", "its config.json is gone, with the folder or without"),
    ],
)
def test_a_folder_that_is_moved_while_its_run_trains_is_not_made_anew(
    then, message, train, tmp_path, monkeypatch, capsys, never_stopped
):
    whole = never_stopped("--checkpoint-every", "1")
    out, moved = tmp_path / "run", tmp_path / "elsewhere"
    seen = 0

    def check(self, seconds=0.0, due=False):
        nonlocal seen
        seen += 1
        if seen == 30:
            wait = time.monotonic() + 60
            while not complete_checkpoints(out):
                assert time.monotonic() < wait
                time.sleep(0.01)
            out.rename(moved)
            if then == "SIGTERM":
                raise StoppedRun(TERMINATED)
        return due or (seen == 30 and then == "a checkpoint is due")

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "check", check)
        assert train("--checkpoint-every", "1")[0] == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert str(out) in error
    assert message in error
    assert not out.exists()
    options = ("--checkpoint-every", "1", "--resume")
    assert train(*options, folder=moved)[0] == 0
    assert ending(moved) == whole


def test_nothing_to_resume_is_begun(train, capsys):
    code, folder = train("--resume", "--epochs", "1")
    assert code == 0
    assert "; nothing to resume, so it begins\n" in capsys.readouterr().out
    assert len(results(folder)) == 1


def test_killed_before_the_first_checkpoint_is_begun_again(train, capsys):
    _, folder = train("--epochs", "1")
    whole = ending(folder)
    (folder / "summary.json").unlink()
    assert train("--resume", "--epochs", "1")[0] == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert ending(folder) == whole


def test_complete_run_says_so(train, capsys, monkeypatch):
    _, folder = train("--epochs", "1")
    files = {path: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(command, "load", lambda config: pytest.fail("loads data"))
    assert train("--resume", "--epochs", "1")[0] == 0
    assert capsys.readouterr().out.startswith(
        "nothing left to do: finished after 1 of 1 epochs: test accuracy"
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize("seeds", [(), ("--seeds", "0")])
def test_an_ended_run_that_is_damaged_goes_on_from_its_checkpoint(train, capsys, seeds):
    args = ["--epochs", "2", "--checkpoint-every", "1", *seeds]
    _, top = train(*args)
    folder = top / "seed0" if seeds else top
    whole = ending(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    capsys.readouterr()
    assert train(*args, "--resume")[0] == 0
    assert f"{folder}: damaged: metrics.jsonl has 1 of 2" in capsys.readouterr().err
    assert ending(folder) == whole


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("summary.json", {"timing": 3}, "summary.json: timing cannot be 3"),
        ("summary.json", {"epochs": 1, "message": []}, "summary.json: message cannot"),
        ("config.json", {"config": []}, "config.json is not that of a run"),
        ("config.json", {"config": {"hyperparameters": [1]}}, "not that of a run"),
    ],
)
@pytest.mark.parametrize("seeds", [(), ("--seeds", "0")], ids=["alone", "seeds"])
def test_an_ended_run_that_is_damaged_without_a_checkpoint(
    train, capsys, name, other, message, seeds
):
    _, top = train("--epochs", "1", *seeds)
    file = (top / "seed0" if seeds else top) / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **other}))
    capsys.readouterr()
    assert train("--epochs", "1", *seeds, "--resume")[0] == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--overwrite begins the run anew" in error


def test_a_run_without_times_is_complete(train, capsys):
    _, folder = train("--epochs", "1")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "timing": None}))
    assert train("--epochs", "1", "--resume")[0] == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_run_that_is_not_finite_is_not_repeated(train, capsys):
    args = ["--learning-rate", "1e30"]
    assert train(*args)[0] == 3
    capsys.readouterr()
    assert train(*args, "--resume")[0] == 3
    assert "nothing left to do: not finite after 0 of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "sgd"], "--optimizer is sgd here and adamsrt in"),
        (["--seed", "3"], "--seed is 3 here and 0 in"),
        (["--epochs", "4"], "--epochs is 4 here and 3 in"),
        (["--b1", "0.8"], "--b1 is 0.8 here and 0.9 in"),
        (["--dtype", "bfloat16"], "--dtype is bfloat16 here and float32 in"),
        (["--schedule", "step"], "--schedule is step here and cosine in"),
        (["--monitor"], "--monitor is True here and False in"),
    ],
)
def test_another_run_is_refused(options, message, train, stopped, capsys):
    folder, _ = stopped
    config = (folder / "config.json").read_bytes()
    # Where the run goes and how it is watched makes it no other one.
    assert train("--resume", *options, "--checkpoint-every", "never")[0] == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --resume: {message}")
    assert error.endswith(f"{folder / 'config.json'}\n")
    assert error.count("\n") == 1
    assert (folder / "config.json").read_bytes() == config


def test_another_run_of_other_milestones_is_refused(train, stop_at, capsys):
    """A list, which JSON keeps as another type than the command has."""
    steps = ("--schedule", "step", "--milestones")
    stop_at(2)
    _, folder = train(*steps, "0.25", "0.5")
    stop_at(None)
    capsys.readouterr()
    assert train("--resume", *steps, "0.5")[0] == 2
    message = f"--milestones is [0.5] here and [0.25, 0.5] in {folder / 'config.json'}"
    assert capsys.readouterr().err == f"error: --resume: {message}\n"
    assert train("--resume", *steps, "0.25", "0.5")[0] == 0


def test_checkpoint_of_another_run_is_refused(train, stop_at, tmp_path, capsys):
    stop_at(5)
    _, folder = train()
    stop_at(5)
    _, other = train("--seed", "1", folder=tmp_path / "other")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(other / "checkpoints", folder / "checkpoints")
    assert train("--resume")[0] == 2
    assert "--seed is 0 here and 1 in the checkpoint" in capsys.readouterr().err


@pytest.fixture
def stopped(train, stop_at, never_stopped, shared, tmp_path):
    """A run stopped in its third epoch, with a checkpoint of step 44 and of step 59."""

    def make(folder):
        stop_at(23 + 23 + 16)
        code, _ = train("--checkpoint-every", "1", folder=folder)
        assert code == 4
        stop_at(None)

    folder = shutil.copytree(shared("stopped", make), tmp_path / "run")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"44", "59"}
    return folder, never_stopped()


def test_damaged_newest_is_named_and_the_one_before_used(stopped, train, capsys):
    folder, whole = stopped
    data = max(
        (folder / "checkpoints/59/arrays").rglob("*"), key=lambda p: p.stat().st_size
    )
    data.write_bytes(data.read_bytes()[:-1])
    assert train("--resume")[0] == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"warning: {folder}/checkpoints/59: damaged, set aside")
    assert shown.err.count("\n") == 1
    assert "goes on after 2 epochs, at step 44" in shown.out
    assert ending(folder) == whole


def test_every_checkpoint_damaged(stopped, train, capsys):
    """However often it is resumed, nothing of the run is deleted."""
    folder, _ = stopped
    for record in folder.glob("checkpoints/*/record/metadata"):
        record.unlink()
    metrics = (folder / "metrics.jsonl").read_bytes()
    for _ in range(2):
        assert train("--resume")[0] == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert "only damaged-44, damaged-59; --overwrite begins the run anew" in error
        assert (folder / "metrics.jsonl").read_bytes() == metrics
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert names == {"damaged-44", "damaged-59"}
    assert train("--overwrite", "--epochs", "1")[0] == 0
    assert len(results(folder)) == 1


def test_a_disk_that_cannot_be_read_for_a_while_costs_nothing(
    stopped, train, capsys, monkeypatch
):
    folder, whole = stopped

    def read(self, *args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_read", read)
        assert train("--resume")[0] == 1
    assert capsys.readouterr().err == (
        f"error: {folder}/checkpoints/59: cannot be read: Input/output error; --resume"
        " tries it again, or goes on from the one before it once"
        f" {folder}/checkpoints/59 is moved away\n"
    )
    assert train("--resume")[0] == 0
    assert "goes on after 2 epochs, at step 59" in capsys.readouterr().out
    assert ending(folder) == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: text + text,
        lambda text: text + '{"epoch": 3, "step',
        lambda text: text.splitlines(keepends=True)[0],
        lambda text: "",
    ],
    ids=["cut", "doubled", "third begun", "second missing", "empty"],
)
def test_metrics_are_made_whole(damage, stopped, train):
    folder, whole = stopped
    path = folder / "metrics.jsonl"
    path.write_text(damage(path.read_text()))
    assert train("--resume")[0] == 0
    assert ending(folder) == whole


def test_full_disk_at_the_metrics(stopped, train, capsys, monkeypatch):
    """The device file is as full as a disk can be."""
    folder, whole = stopped
    from experiments.runs import RunFolder

    added = RunFolder.add_metrics

    def add_metrics(self, metrics):
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").symlink_to("/dev/full")
        added(self, metrics)

    monkeypatch.setattr(RunFolder, "add_metrics", add_metrics)
    assert train("--resume")[0] == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: [Errno 28] No space left on device: '{folder}/metrics.jsonl'\n"
    )
    monkeypatch.undo()
    install(monkeypatch)
    assert train("--resume")[0] == 0
    assert ending(folder) == whole


@pytest.mark.filterwarnings("ignore:os.fork")
def test_full_disk_at_a_checkpoint(stopped, train):
    folder, whole = stopped

    def no_file_may_grow():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    args = [*ARGS, "--out", str(folder), "--resume", "--checkpoint-every", "1"]
    with start(*args, preexec_fn=no_file_may_grow) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert err == (
        f"error: {folder}/checkpoints: the checkpoint of step 66 could not be written:"
        " File too large; the last good one, of step 59, is kept\n"
    )
    assert train("--resume")[0] == 0
    assert ending(folder) == whole


def test_two_processes_do_not_work_on_one_run(stopped, train, capsys):
    from experiments.locks import lock_folder

    folder, _ = stopped
    lock = lock_folder(folder)
    for option in ("--resume", "--overwrite"):
        assert train(option)[0] == 2
        assert "taken by another run" in capsys.readouterr().err
    lock.release()
    assert train("--resume")[0] == 0


def test_killed_again_and_again_it_goes_on_to_the_same_bits(
    train, never_stopped, tmp_path
):
    """By SIGKILL, once within the writing of a checkpoint."""
    args = ["--epochs", "30", "--checkpoint-every", "1", "--optimizer", "adamp"]
    whole = never_stopped(*args)
    folder, rng = tmp_path / "run", random.Random(0)

    reached = [0]
    for moment in ("written", "random", "random"):
        with start(*args, "--out", str(folder), "--resume") as process:
            assert "compiled in" in process.stdout.readline()
            if moment == "written":
                assert kill_when(process, lambda: is_writing(folder))
            else:
                assert wait_for(process, lambda: newest_step(folder) > reached[-1])
                time.sleep(rng.uniform(0, 0.2))
                process.kill()
            _, err = process.communicate()
        assert (process.returncode, err) == (-signal.SIGKILL, "")
        if moment == "written":
            assert list(folder.glob("checkpoints/*.orbax-checkpoint-tmp"))
        assert not (folder / "summary.json").exists()
        reached.append(newest_step(folder))
    assert train(*args, "--resume")[0] == 0
    assert ending(folder) == whole
    assert summary_of(folder)["resumed_at_steps"] == reached[1:]
    assert 0 < reached[1] < reached[2] < reached[3] < 30 * STEPS


def test_sigterm_saves_then_time_is_up_then_it_goes_on(train, tmp_path):
    args = ["--epochs", "2000", "--optimizer", "sgd"]
    folder = tmp_path / "run"
    with start(*args, "--out", str(folder)) as process:
        assert wait_for(process, lambda: (folder / "metrics.jsonl").exists())
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (4, "")
    summary = summary_of(folder)
    epochs = summary["epochs"]
    assert out.splitlines()[-1].startswith(f"terminated after {epochs} of 2000 epochs")
    assert len(complete_checkpoints(folder)) == 1

    # The limit is meant to hold on any machine, however busy it is now.
    limit = 2 * summary["timing"]["seconds_to_first_step"] + 4
    began = time.monotonic()
    resume = [*args, "--out", str(folder), "--resume", f"--time-limit={limit}s"]
    with start(*resume) as process:
        out, err = process.communicate(timeout=10 * limit)
    assert time.monotonic() - began < limit
    assert (process.returncode, err) == (5, "")
    assert summary_of(folder)["status"] == "out of time"
    more = summary_of(folder)["epochs"]
    assert more > epochs
    assert out.splitlines()[-1].startswith(f"out of time after {more} of 2000 epochs")
    lines = results(folder)
    assert [line["epoch"] for line in lines] == list(range(1, more + 1))
    assert json.loads((folder / "config.json").read_text())["config"]["epochs"] == 2000


def test_time_limit_too_short_for_a_step(train, capsys):
    code, folder = train("--time-limit", "0.001s")
    assert code == 5
    assert capsys.readouterr().err == (
        "stopped: no step was done: --time-limit is too short\n"
    )
    assert len(complete_checkpoints(folder)) == 1


def test_minutes_count_between_steps_too(train, monkeypatch):
    """A checkpoint is due at every step; of an epoch of 22 the newest two are kept."""
    ticks = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("experiments.keeper.time", clock)
    _, folder = train("--checkpoint-every", "3s", "--epochs", "1")
    steps = sorted(int(path.name) for path in complete_checkpoints(folder))
    assert len(steps) == 2
    assert steps[1] == STEPS
    assert 0 < steps[0] < STEPS


def test_never_means_never_unless_stopped(train, stop_at):
    _, folder = train("--checkpoint-every", "never")
    assert not (folder / "checkpoints").exists()
