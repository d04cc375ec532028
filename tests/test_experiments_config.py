"""The command line of the training command: what it takes and what it refuses."""

import inspect
import json

import pytest

import spherical_optax as so
from experiments.config import Hyperparameters, parse, to_json
from experiments.errors import UsageError
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import make_schedule


def error_of(*args):
    with pytest.raises(UsageError) as raised:
        parse(args)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_defaults_are_complete():
    config = parse([])
    assert config.optimizer == "adamsrt"
    assert config.dataset == "digits"
    assert str(config.out) == "runs/digits-small_resnet-adamsrt-seed0"
    assert config.hyperparameters.given() == OPTIMIZERS["adamsrt"].options()


def test_every_optimizer_of_the_library_is_on_the_command_line():
    def is_optimizer(name):
        function = getattr(so, name)
        return (
            inspect.isfunction(function)
            and not name.startswith("scale_by_")
            and next(iter(inspect.signature(function).parameters)) == "learning_rate"
        )

    own = {name for name in so.__all__ if is_optimizer(name)}
    assert {"adamsrt", "sgdp", "swats", "lamb"} <= own <= set(OPTIMIZERS)
    assert all(OPTIMIZERS[name].build is getattr(so, name) for name in own)


def test_options_of_optimizers_and_of_the_command_are_the_same():
    taken = {option for choice in OPTIMIZERS.values() for option in choice.options()}
    assert taken == set(vars(Hyperparameters()))


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    shown = capsys.readouterr().out
    for name in [*OPTIMIZERS, "digits", "small_resnet", "--wd-ratio", "--final-learn"]:
        assert name in shown


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--optimizer", "adamx"], ["--optimizer", "'adamx'", *OPTIMIZERS]),
        (["--model", "vit"], ["--model", "'vit'", "small_resnet"]),
        (["--dataset", "mars"], ["--dataset", "'mars'", "digits"]),
        (["--learning-rate", "-1"], ["--learning-rate", ">= 0", "-1.0"]),
        (["--learning-rate", "nan"], ["--learning-rate", "finite", "nan"]),
        (["--learning-rate", "1e-50"], ["--learning-rate", "float32", "1e-50"]),
        (["--learning-rate", "1e308"], ["--learning-rate", "float32", "1e+308"]),
        (["--learning-rate", "inf"], ["--learning-rate", "finite", "inf"]),
        (["--weight-decay", "-0.1"], ["--weight-decay", ">= 0"]),
        (["--b1", "1"], ["--b1", "[0, 1)", "1.0"]),
        (["--optimizer", "sgd", "--momentum", "1.5"], ["--momentum", "[0, 1)"]),
        (["--optimizer", "adabound", "--gamma", "0"], ["--gamma", "> 0"]),
        (["--epochs", "0"], ["--epochs", "at least 1", "0"]),
        (["--batch-size", "-3"], ["--batch-size", "at least 1", "-3"]),
        (["--seed", "-1"], ["--seed", "0 to", "-1"]),
        (["--milestones", "0.5", "0.2"], ["--milestones", "rising", "0.5 0.2"]),
        (["--milestones", "2"], ["--milestones", "between 0 and 1"]),
        (["--milestone-factor", "-1"], ["--milestone-factor", ">= 0"]),
        (["--skip-nonfinite", "2147483648"], ["--skip-nonfinite", "to 2147483647"]),
        (["--milestones", "0.5"], ["--milestones", "--schedule step, not cosine"]),
        (
            ["--schedule", "constant", "--milestone-factor", "0.5"],
            ["--milestone-factor", "--schedule step, not constant"],
        ),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(args, parts):
    message = error_of(*args)
    assert all(part in message for part in parts)


def test_option_that_the_optimizer_does_not_take():
    message = error_of("--optimizer", "sgd", "--b1", "0.9")
    assert message.startswith("--b1: sgd ")
    for option in ("--learning-rate", "--momentum", "--weight-decay", "--nesterov"):
        assert option in message
    assert "--b2" not in message


@pytest.mark.parametrize("args", [["--epochs", "ten"], ["--switch", "locall"], ["--x"]])
def test_what_does_not_parse_exits_with_2(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(args)
    assert args[0] in capsys.readouterr().err


@pytest.fixture
def write(tmp_path):
    def write(record):
        path = tmp_path / "config.json"
        path.write_text(record if isinstance(record, str) else json.dumps(record))
        return ["--config", str(path)]

    return write


def test_config_file_says_all_that_the_command_line_said(write):
    asked = parse(
        [
            "--optimizer",
            "swats",
            "--switch",
            "vector",
            "--sgd-scale",
            "0.5",
            "--nesterov",
            "True",
            "--epochs",
            "7",
            "--schedule",
            "step",
            "--milestones",
            "0.25",
            "0.5",
            "--no-augment",
            "--seed",
            "5",
            "--out",
            "x",
        ]
    )
    again = parse(write({"config": to_json(asked)}))
    assert to_json(again) == to_json(asked)
    assert str(again.out) == "runs/digits-small_resnet-swats-seed5"


def test_options_win_over_the_config_file(write):
    file = write({"config": to_json(parse(["--learning-rate", "0.5", "--seed", "3"]))})
    config = parse([*file, "--seed", "4", "--b1", "0.5"])
    assert (config.seed, config.hyperparameters.b1) == (4, 0.5)
    assert config.hyperparameters.learning_rate == 0.5


def test_another_optimizer_leaves_the_hyperparameters_of_the_file_aside(write):
    file = write({"config": to_json(parse(["--optimizer", "swats", "--seed", "3"]))})
    config = parse([*file, "--optimizer", "sgd"])
    assert config.seed == 3
    assert config.hyperparameters.given() == OPTIMIZERS["sgd"].options()


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{",
        {},
        {"config": 3},
        *[{"config": {"hyperparameters": given}} for given in (None, ["b1", 3])],
    ],
)
def test_file_that_is_no_config(write, record):
    args = write(record)
    assert error_of(*args) == f"--config {args[1]}: not the config.json of a run"


def test_config_file_with_an_unknown_option(write):
    assert "'epoch'" in error_of(*write({"config": {"epoch": 3}}))
    assert "'b3'" in error_of(*write({"config": {"hyperparameters": {"b3": 3}}}))


def test_config_file_cannot_ask_for_overwriting(write):
    assert "'overwrite'" in error_of(*write({"config": {"overwrite": True}}))


def test_config_file_that_is_not_there(tmp_path):
    assert "No such file" in error_of("--config", str(tmp_path / "none.json"))


def test_schedules():
    milestones = (1 / 3, 5 / 9, 7 / 9)
    constant, cosine, step = (
        make_schedule(name, 405, milestones, 0.1)
        for name in ("constant", "cosine", "step")
    )
    assert [float(constant(n)) for n in (0, 404)] == [1, 1]
    assert float(cosine(0)) == 1
    assert float(cosine(405)) == pytest.approx(0, abs=1e-7)
    falls = [float(step(n)) for n in (0, 134, 135, 224, 225, 314, 315, 404)]
    assert falls == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_milestones_that_meet_in_one_step_both_count():
    step = make_schedule("step", 2, (0.4, 0.6), 0.1)
    assert [float(step(n)) for n in (0, 1)] == pytest.approx([1, 0.01])


def test_schedule_begins_at_1_however_short_the_run():
    """Also where the first milestone rounds to step 0, or two of them do."""
    assert make_schedule("step", 10, (0.04,), 0.1)(0) == 1
    step = make_schedule("step", 10, (0.01, 0.04), 0.1)
    assert [float(step(n)) for n in (0, 1, 9)] == pytest.approx([1, 0.01, 0.01])
    assert make_schedule("step", 1, (1 / 3, 5 / 9), 0.1)(0) == 1
