"""bfloat16 stays as near to float32 as rounding allows."""

import json

import pytest

from experiments.bench import precision


@pytest.fixture(scope="module")
def curves():
    return precision.compare(precision.Options(steps=100))


@pytest.mark.parametrize("name", precision.OPTIMIZERS)
def test_bfloat16_weights_stray_no_further_than_rounding_can_take_them(curves, name):
    some = curves[name]
    pairs = zip(some["bfloat16 weights"], some["worst case of rounding"], strict=True)
    assert all(0 < apart <= bound for apart, bound in pairs)


@pytest.mark.parametrize("name", ["adam", "adams", "adamsrt", "adamg", "adamp"])
def test_a_bfloat16_moment_alone_does_less_than_bfloat16_weights(curves, name):
    moment = curves[name]["bfloat16 first moment"][-1]
    assert 0 < moment < curves[name]["bfloat16 weights"][-1]


def test_the_command_writes_curves_and_a_figure(tmp_path, capsys):
    figure, file = tmp_path / "a" / "f.png", tmp_path / "b" / "c.json"
    words = ["--optimizers", "adamsrt", "--steps", "3"]
    assert precision.main([*words, "--json", str(file), "--figure", str(figure)]) == 0
    assert "adamsrt" in capsys.readouterr().out
    assert figure.stat().st_size > 1000
    record = json.loads(file.read_text())
    assert len(record["curves"]["adamsrt"]["bfloat16 weights"]) == 3
    assert record["versions"]["jax"]


@pytest.mark.parametrize(
    "words", [["--optimizers", "nosuch"], ["--steps", "0"], ["--learning-rate", "nan"]]
)
def test_mistakes_are_one_line(words, capsys):
    assert precision.main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")
