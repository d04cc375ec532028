"""How commands end: an exit code, and one line on the error output."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import collectives, errors, measure_seeds
from experiments.commands import run_command
from experiments.progress import say
from experiments.stopping import StoppedRun, StopRequest

ROOT = Path(__file__).parent.parent
SLOW = """
import time
print("importing", flush=True)
time.sleep(60)
"""
ANEW = """
import os, signal
from experiments.allocator import start_with
print("importing", flush=True)
assert "ANEW" not in os.environ

def execve(*args, begin=os.execve):
    os.kill(os.getpid(), signal.SIGTERM)
    begin(*args)

os.execve = execve
start_with({"ANEW": "1"})
"""


def raising(error):
    def act():
        raise error

    return act


def test_the_code_of_what_was_done(capsys):
    assert run_command(lambda: errors.EXIT_OUT_OF_TIME) == errors.EXIT_OUT_OF_TIME
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.UsageError("--a [b]: no"), errors.EXIT_USAGE, "error: --a [b]: no"),
        (errors.CheckpointError("none"), errors.EXIT_FAILED, "error: none"),
        (
            FileNotFoundError(2, "No", "x"),
            errors.EXIT_FAILED,
            "error: [Errno 2] No: 'x'",
        ),
        (KeyboardInterrupt(), errors.EXIT_INTERRUPTED, "nothing is kept"),
    ],
)
def test_what_a_user_can_act_on_is_one_line(capsys, error, code, line):
    assert run_command(raising(error), interrupted="nothing is kept") == code
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(
    ("module", "busy"),
    [(collectives, "measure_update"), (measure_seeds, "one_after_another")],
)
def test_ctrl_c_in_a_measurement(module, busy, monkeypatch, capsys):
    def press(*args):
        # Whoever started the tests may have told them to ignore it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, before)

    monkeypatch.setattr(module, busy, press)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(jax.config, "update", lambda *args: None)
    monkeypatch.setattr(jax, "make_mesh", lambda *args, **options: None)
    assert module.main([]) == errors.EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_a_line_is_printed_as_it_is(capsys):
    line = "/tmp/:cat:/[b]:key:[/b]/1.json " + 100 * "x"
    say(line)
    assert capsys.readouterr().out == line + "\n"


def begin(module, *args, jax=None, folder=None, **options):
    """Starts a command; ``jax`` is what it imports under this name, from ``folder``."""
    if jax is not None:
        (folder / "jax.py").write_text(jax)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *args],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder or ROOT)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


COMMANDS = (
    *("train", "find_lr", "reproduce", "report", "sweep", "studies", "bench"),
    *("collectives", "inspect", "measure_seeds"),
)


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, errors.EXIT_INTERRUPTED, b"interrupted\n"),
        (signal.SIGTERM, errors.EXIT_TERMINATED, b"terminated\n"),
    ],
)
def test_signal_while_a_command_imports(module, number, code, said, tmp_path):
    with begin(module, jax=SLOW, folder=tmp_path) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=30) == (b"", said)
    assert process.returncode == code


def test_signal_while_a_program_starts_anew(tmp_path):
    with begin("train", jax=ANEW, folder=tmp_path) as process:
        said = process.communicate(timeout=30)
    assert said == (b"importing\n", b"terminated\n")
    assert process.returncode == errors.EXIT_TERMINATED


def test_importing_a_command_changes_nothing():
    program = (
        "import sys; from signal import SIGINT, SIGTERM, getsignal;"
        " before = sys.stdout, sys.stderr, getsignal(SIGINT), getsignal(SIGTERM);"
        " import experiments.train;"
        " after = sys.stdout, sys.stderr, getsignal(SIGINT), getsignal(SIGTERM);"
        " assert before == after"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("module", "args"),
    [
        ("train", ["--help"]),
        ("reproduce", ["--help"]),
        ("reproduce", ["--list", "--out", "none"]),
        ("data", ["list"]),
        ("inspect", []),
    ],
)
def test_closed_output_is_no_error(module, args):
    reads, writes = os.pipe()
    os.close(reads)
    with begin(module, *args, stdout=writes) as process:
        os.close(writes)
        _, err = process.communicate(timeout=120)
    expected = errors.EXIT_OUT_OF_TIME if "--list" in args else errors.EXIT_FINISHED
    assert (process.returncode, err) == (expected, b"")


def test_help_ends_in_a_window_of_a_few_columns():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "5"}
    command = [sys.executable, "-m", "experiments.report", "--help"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=True
    )
    assert b"--out" in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallows_stops_the_run_at_its_next_look(number):
    with StopRequest() as stop:
        with contextlib.suppress(KeyboardInterrupt, StoppedRun):
            signal.raise_signal(number)
        with pytest.raises(StoppedRun):
            stop.check()


def test_ctrl_c_does_not_wait_for_threads(monkeypatch, capsys):
    """What still compiles crashes when Python takes its modules down."""
    codes = []
    monkeypatch.setattr("experiments.commands.leave_at_once", codes.append)
    run_command(raising(KeyboardInterrupt()))
    assert codes == [errors.EXIT_INTERRUPTED]
    assert capsys.readouterr().err == "interrupted\n"
