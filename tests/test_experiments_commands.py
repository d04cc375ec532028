"""How commands end: an exit code, and one line on the error output."""

import pytest

from experiments import errors
from experiments.commands import run_command


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


def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))
