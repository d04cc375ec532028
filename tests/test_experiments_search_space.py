"""What a search chooses from."""

import pytest

from experiments.errors import UsageError
from experiments.search_space import (
    Choices,
    Range,
    edge_points,
    grid_points,
    parse_space,
    published_space,
)


def test_published_grid_is_read_off_the_table():
    space = published_space("adamsrt")
    decays = [0.0, *(5e-4 / 2**k for k in range(6, -1, -1))]
    assert space == {
        "learning_rate": Choices([0.001]),
        "b1": Choices([0.9]),
        "b2": Choices([0.99, 0.999]),
        "weight_decay": Choices(decays),
    }
    assert len(list(grid_points(space))) == 16
    assert published_space("sgd")["learning_rate"] == Choices([0.1])
    assert published_space("adamw")["weight_decay"] == Choices(decays)
    with pytest.raises(UsageError, match="--preset spherical: --optimizer"):
        published_space("adamp")


def test_space_is_read():
    texts = ["switch=local,global", "learning-rate=1e-4..0.1", "amsgrad=True,False"]
    space = parse_space("swats", texts)
    assert space == {
        "switch": Choices(["local", "global"]),
        "learning_rate": Range(1e-4, 0.1),
        "amsgrad": Choices([True, False]),
    }
    assert Range(1e-4, 0.1).log
    assert not Range(0, 0.1).log


def test_edge_points_have_every_choice_and_both_ends():
    space = {"b1": Choices([0.5, 0.9]), "b2": Range(0.1, 0.2), "eps": Choices([0])}
    assert list(edge_points(space)) == [
        {"b1": 0.5, "b2": 0.1, "eps": 0},
        {"b1": 0.9, "b2": 0.1, "eps": 0},
        {"b1": 0.5, "b2": 0.1, "eps": 0},
        {"b1": 0.5, "b2": 0.2, "eps": 0},
        {"b1": 0.5, "b2": 0.1, "eps": 0},
    ]
