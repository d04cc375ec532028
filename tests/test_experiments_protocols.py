"""The published protocols: what they set, and what wins over them."""

import json

import jax.numpy as jnp
import pytest
from tiny_training import install

from experiments import protocols
from experiments.config import ADDED_LATER, parse, to_json
from experiments.data import DATASETS, STREAMED
from experiments.errors import UsageError
from experiments.models import MODELS
from experiments.optimizers import OPTIMIZERS, make_optimizer
from experiments.protocols import Names, read_table
from experiments.schedules import make_schedule
from experiments.train import main

# The table of the paper, written apart from hyperparameters.toml. A line: optimizer,
# learning rate, momentum or b1 and b2, weight decay; None where the paper has none.
PAPER = """
[cifar10 resnet18]
adams 0.001 0.9 0.99 1.5625e-05
adamsrt 0.001 0.9 0.99 7.8125e-06
adamw 0.001 0.9 0.99 6.25e-05
adam 0.001 0.9 0.999 7.8125e-06
adamg 0.01 0.9 0.99 0.0005
sgd 0.1 0.9 0.00025
sgdmrt 0.1 0.9 0.00025
[cifar10 resnet20]
adams 0.001 0.9 0.99 0.0005
sgdmrt 0.1 0.9 3.125e-05
sgd 0.1 0.9 0.00025
adamsrt 0.001 0.9 0.99 7.8125e-06
adam 0.001 0.9 0.99 0.0005
adamw 0.001 0.9 0.99 None
adamg 0.01 0.9 0.99 0.0005
[cifar10 vgg16]
adams 0.001 0.9 0.999 3.125e-05
sgdmrt 0.1 0.9 6.25e-05
sgd 0.1 0.9 0.00025
adamsrt 0.001 0.9 0.999 1.5625e-05
adam 0.001 0.9 0.999 3.125e-05
adamw 0.001 0.9 0.999 0.00025
adamg 0.01 0.9 0.999 0.0005
[cifar100 resnet18]
adams 0.001 0.9 0.99 0.000125
sgdmrt 0.1 0.9 0.0005
sgd 0.1 0.9 0.0005
adamsrt 0.001 0.9 0.999 0.0
adamw 0.001 0.9 0.99 0.000125
adam 0.001 0.9 0.999 0.000125
adamg 0.01 0.9 0.99 0.0005
[cifar100 vgg16]
adams 0.001 0.9 0.99 6.25e-05
sgdmrt 0.1 0.9 0.000125
sgd 0.1 0.9 0.0005
adamsrt 0.001 0.9 0.99 7.8125e-06
adamw 0.001 0.9 0.99 1.5625e-05
adam 0.001 0.9 0.99 6.25e-05
adamg 0.01 0.9 0.99 0.0005
[svhn_cropped resnet18]
adams 0.001 0.9 0.99 3.125e-05
sgdmrt 0.1 0.9 0.0005
sgd 0.1 0.9 0.0005
adamsrt 0.001 0.9 0.999 7.8125e-06
adam 0.001 0.9 0.999 0.0
adamw 0.001 0.9 0.999 7.8125e-06
adamg 0.01 0.9 0.99 0.0005
[svhn_cropped vgg16]
adams 0.001 0.9 0.99 7.8125e-06
sgdmrt 0.1 0.9 3.125e-05
sgd 0.1 0.9 0.0005
adamsrt 0.001 0.9 0.999 0.00025
adamw 0.001 0.9 0.99 3.125e-05
adam 0.001 0.9 0.99 0.0
adamg 0.01 0.9 0.99 0.0005
[imagenet2012 resnet18_imagenet]
sgd 0.1 0.9 6.25e-05
sgdmrt 0.1 0.9 6.25e-05
adams 0.001 0.9 0.99 1.5625e-05
adamsrt 0.001 0.9 0.999 7.8125e-06
adam 0.001 0.9 0.99 7.8125e-06
"""


def paper():
    """Names to what the paper says of them."""
    rows, place = {}, ()
    for line in PAPER.split("\n")[1:-1]:
        if line.startswith("["):
            place = line[1:-1].split()
            continue
        optimizer, rate, *decays, weight_decay = line.split()
        names = ("momentum",) if len(decays) == 1 else ("b1", "b2")
        rows[Names(*place, optimizer)] = {
            "learning_rate": float(rate),
            **{n: float(value) for n, value in zip(names, decays, strict=True)},
            "weight_decay": None if weight_decay == "None" else float(weight_decay),
        }
    return rows


def args_of(names, *more, protocol="spherical"):
    pairs = zip(("--dataset", "--model", "--optimizer"), names, strict=True)
    return [*(word for pair in pairs for word in pair), "--protocol", protocol, *more]


CIFAR10 = Names("cifar10", "resnet20", "adamsrt")


def test_table_has_what_the_paper_has_and_no_more():
    rows = paper()
    assert len(rows) == 54
    assert set(read_table()) == set(rows)


@pytest.mark.parametrize(("names", "published"), paper().items(), ids="-".join)
def test_every_published_setting_reaches_the_optimizer(names, published):
    assert names.dataset in {*DATASETS, *STREAMED}
    assert names.model in MODELS
    config = parse(args_of(names))
    chosen = config.hyperparameters.given()
    if published["weight_decay"] is None:  # where hyperparameters.toml says so
        assert names == Names("cifar10", "resnet20", "adamw")
        published = {**published, "weight_decay": 0.01}
    assert {name: chosen[name] for name in published} == published
    # What the paper does not mention is as the optimizer has it by itself.
    rest = {name: chosen[name] for name in chosen if name not in published}
    own = OPTIMIZERS[names.optimizer].options()
    assert rest == {name: own[name] for name in rest}
    imagenet = names.dataset == "imagenet2012"
    assert config.batch_size == (256 if imagenet else 128)
    assert config.eval_batch_size == (512 if imagenet else 1024)
    assert (config.epochs, config.validation_fraction) == (405, 0.05)
    assert (config.schedule, config.milestone_factor) == ("step", 0.1)
    assert config.augment


@pytest.mark.parametrize(
    ("epochs", "falls"),
    [(405, (135, 225, 315)), (81, (27, 45, 63)), (9, (3, 5, 7)), (1, ())],
)
def test_milestones_scale_with_the_epochs(epochs, falls):
    """The learning rate, epoch by epoch, in epochs of ten steps."""
    config = parse(args_of(CIFAR10, f"--epochs={epochs}"))
    assert config.epochs == epochs
    schedule = make_schedule(
        config.schedule, 10 * epochs, config.milestones, config.milestone_factor
    )
    factors = [float(schedule(10 * epoch)) for epoch in range(epochs)]
    passed = [sum(epoch >= fall for fall in falls) for epoch in range(epochs)]
    assert factors == pytest.approx([0.1**n for n in passed])
    if falls:  # in the step that begins an epoch, and not before
        before = float(schedule(10 * falls[0] - 1))
        assert before == pytest.approx(1)


def test_what_is_given_wins_and_config_json_says_so(tmp_path, monkeypatch):
    install(monkeypatch)
    row = {"learning_rate": 0.002, "b1": 0.8, "b2": 0.98, "weight_decay": 1e-3}
    names = Names("digits", "tiny", "adamsrt")
    monkeypatch.setattr(protocols, "read_table", lambda: {names: row})
    out = tmp_path / "run"
    args = args_of(names, "--epochs=1", "--b1=0.7", "--eps", "1e-6", f"--out={out}")
    assert main(args) == 0
    record = json.loads((out / "config.json").read_text())
    config, sources = record["config"], record["sources"]
    assert config["hyperparameters"] == {**row, "b1": 0.7, "eps": 1e-6}
    assert (config["epochs"], config["batch_size"]) == (1, 128)
    table = "hyperparameters.toml [digits.tiny.adamsrt]"
    by_source = {
        "command line": {*("dataset", "model", "optimizer", "protocol"), "epochs"},
        "protocol": {
            *("batch_size", "eval_batch_size", "schedule", "milestones", "augment"),
            *("milestone_factor", "validation_fraction"),
        },
        table: {"learning_rate", "b2", "weight_decay"},
        "default": {"seed", "dtype", "sgd_milestones", "image_size", *ADDED_LATER},
    }
    by_source["command line"] |= {"b1", "eps"}
    for source, options in by_source.items():
        assert {name for name in sources if sources[name] == source} == options


def test_config_file_of_a_run_repeats_what_it_overrode(tmp_path):
    asked = parse(args_of(CIFAR10, "--epochs=9", "--weight-decay=0"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": to_json(asked)}))
    again = parse(["--config", str(file)])
    assert to_json(again) == to_json(asked)
    assert again.hyperparameters.weight_decay == 0
    assert again.sources["weight_decay"] == "config file"


@pytest.mark.parametrize(
    ("model", "given", "milestones", "sgd_milestones"),
    [
        ("resnet18", [], (0.5,), (0.375, 0.75)),
        ("densenet121", ["--switch", "local"], (0.5,), (0.375, 0.75)),
        ("resnet18", ["--switch=global"], (0.5,), None),
        ("densenet121", ["--switch", "global"], (0.75,), None),
        ("densenet121", ["--switch", "vector"], (0.75,), None),
        ("densenet121", ["--optimizer", "adabound"], (0.5,), None),
    ],
)
def test_swats_has_a_decay_for_each_phase(model, given, milestones, sgd_milestones):
    names = Names("cifar10", model, "swats")
    config = parse(args_of(names, *given, protocol="swats"))
    assert (config.epochs, config.batch_size) == (200, 128)
    assert (config.milestones, config.sgd_milestones) == (milestones, sgd_milestones)
    assert config.validation_fraction == 0  # the last epoch counts
    chosen = config.hyperparameters
    assert chosen.learning_rate == 1e-3
    if config.optimizer == "swats":
        assert chosen.threshold == 1e-5
    else:
        assert chosen.final_learning_rate == 0.1


@pytest.mark.parametrize("given", [["--optimizer", "adabound"], ["--switch", "local"]])
def test_config_file_with_another_optimizer_or_switch_has_its_decays(given, tmp_path):
    """What the protocol set is the protocol's to set again; what a user set stays."""
    names = Names("cifar10", "densenet121", "swats")
    args = [*("--switch", "global"), *("--batch-size", "64")]
    first = parse(args_of(names, *args, protocol="swats"))
    record = {"config": to_json(first), "sources": dict(first.sources)}
    (file := tmp_path / "config.json").write_text(json.dumps(record))
    again = parse(["--config", str(file), *given])
    expected = parse(args_of(names, *given, "--batch-size", "64", protocol="swats"))
    assert to_json(again) == to_json(expected)


@pytest.fixture
def keep(tmp_path):
    """Writes the config.json of a command; returns the options that read it."""

    def keep(*args):
        config = parse(args)
        record = {"config": to_json(config), "sources": dict(config.sources)}
        (file := tmp_path / "config.json").write_text(json.dumps(record))
        return ["--config", str(file)]

    return keep


def test_protocol_beside_a_config_file_wins_over_it(keep):
    """As over defaults; what is given beside it wins over both."""
    names = Names("cifar10", "resnet18", "adam")
    chosen = ["--epochs=3", "--learning-rate=0.5", "--schedule=constant", "--seed=7"]
    file = keep(*args_of(names, protocol="")[:-2], *chosen)
    protocol = ["--protocol", "spherical"]
    assert parse(file).epochs == 3
    again = parse([*file, *protocol])
    assert to_json(again) == to_json(parse(args_of(names, "--seed=7")))
    assert again.sources["epochs"] == "protocol"
    assert again.sources["learning_rate"].startswith("hyperparameters.toml")
    assert again.sources["seed"] == "config file"
    given = ["--epochs=4", "--learning-rate=0.25"]
    for args in ([*file, *protocol, *given], [*given, *protocol, *file]):
        expected = parse(args_of(names, "--seed=7", *given))
        assert to_json(parse(args)) == to_json(expected)


def test_protocol_beside_a_config_file_of_another_protocol(keep):
    """Nothing is left of the other protocol; what a user chose stays."""
    names = Names("cifar10", "resnet18", "swats")
    file = keep(*args_of(names, "--switch=global", protocol="swats"))
    given = ["--optimizer=adam", "--protocol=spherical"]
    names = names._replace(optimizer="adam")
    assert to_json(parse([*file, *given])) == to_json(parse(args_of(names)))


def test_protocol_beside_a_config_file_refuses_what_it_does_not_know(keep):
    """Defaults that the file has written out are not what a user gave."""
    file = keep("--optimizer=adam", "--b1=0.8")
    with pytest.raises(UsageError, match="has nothing for adam") as raised:
        parse([*file, "--protocol=spherical"])
    assert "give --learning-rate --b2 --weight-decay," in str(raised.value)
    with pytest.raises(UsageError, match="for --optimizer swats or adabound"):
        parse([*file, "--protocol", "swats"])


def test_config_file_of_a_protocol_repeats_the_run(keep):
    """What is in it stays as it is, whatever the protocol says by then."""
    args = args_of(Names("cifar10", "resnet18", "adam"), "--epochs=9", "--b1=0.8")
    assert to_json(parse(keep(*args))) == to_json(parse(args))


def test_decays_of_the_two_phases_arrive_at_the_optimizer():
    """With a gradient that never changes: the step of each phase, over 200 epochs."""
    config = parse(args_of(Names("cifar10", "resnet18", "swats"), protocol="swats"))
    options = {**config.hyperparameters.given(), "threshold": 1e9, "b1": 0.0}
    assert config.sgd_milestones is not None

    def sizes(threshold):
        schedules = [
            make_schedule("step", 200, falls, config.milestone_factor)
            for falls in (config.milestones, config.sgd_milestones)
        ]
        optimizer = make_optimizer(
            "swats",
            {**options, "threshold": threshold},
            schedules[0],
            lambda params: params,
            {},
            sgd_schedule=schedules[1],
        )
        params = jnp.ones(3)
        state, found = optimizer.init(params), []
        for _ in range(200):
            update, state = optimizer.update(jnp.ones(3), state, params)
            found.append(float(-update[0]))
        return found

    adam = sizes(threshold=0.0)  # it never switches
    assert adam[99] == pytest.approx(adam[50], rel=1e-3)
    assert adam[100] == pytest.approx(0.1 * adam[99], rel=1e-3)
    assert adam[199] == pytest.approx(adam[100], rel=1e-3)
    sgd = sizes(threshold=1e9)  # it switches at the second step
    assert sgd[75] == pytest.approx(0.1 * sgd[74], rel=1e-3)
    assert sgd[100] == pytest.approx(sgd[99], rel=1e-3)
    assert sgd[150] == pytest.approx(0.1 * sgd[149], rel=1e-3)


@pytest.mark.parametrize(
    ("names", "protocol", "message"),
    [
        (Names("digits", "small_resnet", "adam"), "spherical", "has nothing for adam"),
        (Names("cifar10", "resnet20", "lamb"), "spherical", "has nothing for lamb"),
        (Names("cifar10", "resnet18", "adam"), "swats", "for --optimizer swats or"),
        (CIFAR10, "sphere", "--protocol: unknown name 'sphere'; known: spherical"),
    ],
)
def test_combinations_without_a_protocol_are_an_error(names, protocol, message):
    with pytest.raises(UsageError, match=message) as raised:
        parse(args_of(names, protocol=protocol))
    assert "\n" not in str(raised.value)


def test_protocol_without_a_row_takes_what_is_given():
    given = ["--learning-rate=1e-3", "--b1=0.9", "--b2=0.99", "--weight-decay=1e-4"]
    names = Names("digits", "small_resnet", "adam")
    assert parse(args_of(names, *given)).epochs == 405
    with pytest.raises(
        UsageError, match=r"give --b2, or choose from: cifar10 resnet18"
    ):
        parse(args_of(names, *(word for word in given if "b2" not in word)))
