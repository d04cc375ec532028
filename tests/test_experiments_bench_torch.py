"""The PyTorch side of the benchmark computes the same; skipped without PyTorch."""

import dataclasses
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import models
from experiments.bench import torch_side
from experiments.bench.command import main
from experiments.bench.rows import ROWS, Counterpart
from experiments.bench.store import read
from experiments.bench.trees import random_trees
from experiments.compiling import compile_ahead
from experiments.models.resnet import ResNet
from spherical_optax.labels import leaves_with_paths

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("experiments.bench.torch_models")
CPU = torch.device("cpu")
# Where a package puts its epsilon elsewhere, or rounds a bound.
TOLERANCES = {"swats": 1e-4, "adabound": 1e-6, "lamb": 1e-6}
# PyTorch's SGD phase is told its learning rate; the library finds its own.
FOLLOWED = [name for name, row in ROWS.items() if row.torch and "_sgd" not in name]
SHAPES = {
    "conv1": {"kernel": (3, 3, 4, 6)},
    "norm": {"scale": (6,)},
    "head": {"kernel": (6, 5), "bias": (5,)},
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_counterpart_takes_the_same_steps(name, x64):
    row = ROWS[name]
    pytest.importorskip(row.torch.package)
    if name == "sgdp":  # without nesterov PyTorch's projects its momentum, by aliasing
        row = with_options(row, nesterov=True)
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float64),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    trees = random_trees(shapes, "float64")
    here = jax.tree.map(jnp.array, trees.params)
    there = [torch.nn.Parameter(_to_torch(x)) for x in jax.tree.leaves(here)]
    labels = jax.tree.leaves(trees.labels)
    optimizer = row.make(trees.labels, learning_rate=1e-2)
    other = torch_side.make_optimizer(row.torch, there, labels, 1e-2)
    state, rng = optimizer.init(here), np.random.default_rng(1)
    for number in range(6):
        # Half of the gradients with a part along the weights, half without.
        grads = (
            jax.tree.map(lambda g: g + 0.01 * rng.standard_normal(g.shape), trees.grads)
            if number % 2
            else trees.grads
        )
        updates, state = optimizer.update(grads, state, here)
        here = optax.apply_updates(here, updates)
        for x, g in zip(there, jax.tree.leaves(grads), strict=True):
            x.grad = _to_torch(g)
        other.step()
    tolerance = TOLERANCES.get(name.split("_")[0], 1e-12)
    for x, y in zip(jax.tree.leaves(here), there, strict=True):
        np.testing.assert_allclose(
            _to_torch(x).numpy(),
            y.detach().numpy(),
            rtol=tolerance,
            atol=0.05 * tolerance,
        )


@pytest.mark.parametrize("names", [["adamsrt", "adam"], ["swats_global_sgd", "adamp"]])
def test_steps_beside_each_other(tiny, tmp_path, names):
    for name in names:
        pytest.importorskip(ROWS[name].torch.package)
    path = tmp_path / "results.json"
    options = ("--rounds", "2", "--row-seconds", "0.1", "--json", str(path))
    assert main(["step", "--model", "tiny", "--optimizers", *names, *options]) == 0
    for record in read(path)["records"]:
        result = record["result"]
        assert result["torch"]["missing"] is None
        assert result["ratio"]["torch"]["n"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_beside_each_other(tiny, tmp_path, dtype):
    path = tmp_path / "results.json"
    options = ("--rounds", "1", "--batch-size", "2", "--dtype", dtype)
    assert main(["train", "--model", "tiny", *options, "--json", str(path)]) == 0
    (record,) = read(path)["records"]
    assert record["result"]["missing"] is None
    assert record["result"]["ratio"]["torch"]["median"] > 0


def test_models_are_the_same_function(x64):
    widths, blocks = (4, 8), (2, 1)

    def compute(images):
        sizes = {"channels": 3, "num_classes": 5, "dtype": jnp.float64}
        model = ResNet(widths, blocks, **sizes, rngs=nnx.Rngs(0))
        params = nnx.as_pure(nnx.state(model, nnx.Param))
        return params, model(images, train=True)

    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3))
    fast = {"xla_backend_optimization_level": 0}
    params, here = compile_ahead(compute, images, options=fast)(images)
    params = leaves_with_paths(params)
    net = torch_models.ResNet(widths, blocks, num_classes=5).double()
    weights = dict(net.named_parameters())
    assert len(params) == len(weights)
    firsts = np.cumsum((0, *blocks))
    with torch.no_grad():
        for path, x in params:
            *place, kind = path.split("/")
            if place[0].startswith("stage"):
                stage, block = int(place[0][5:]), int(place[1][5:])
                place[:2] = ["stages", str(firsts[stage - 1] + block)]
            kind = "bias" if kind == "bias" else "weight"
            name = ".".join((*place, kind))
            weights.pop(name).copy_(_to_torch(np.asarray(x)))
    assert not weights
    there = net(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(here, there.detach().numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(torch_models.SHAPES))
def test_models_have_as_many_weights(name):
    from experiments.bench.torch_training import check_same_size

    check_same_size(torch_models.ResNet(*torch_models.SHAPES[name]), name)
    with pytest.raises(AssertionError, match=r"\d+ weights in Flax, \d+ in PyTorch"):
        check_same_size(torch.nn.Linear(2, 2), name)


def test_what_a_counterpart_refuses_is_said():
    bias = {"bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    trees = random_trees({"head": bias})
    wrong = Counterpart("torch", "optim.Adam", {"betas": (2.0, 0.9)})
    with pytest.raises(torch_side.UnavailableError, match="refused: Invalid beta"):
        torch_side.torch_step(wrong, trees)


@pytest.fixture
def tiny(monkeypatch):
    """A model of a few weights."""
    shape = ((4,), (1,))
    monkeypatch.setitem(models.MODELS, "tiny", partial(ResNet, *shape))
    monkeypatch.setitem(torch_models.SHAPES, "tiny", shape)


def with_options(row, **options):
    other = dataclasses.replace(row.torch, options={**row.torch.options, **options})
    return dataclasses.replace(row, torch=other, options={**row.options, **options})


def _to_torch(array):
    return torch_side.to_torch(np.asarray(array), CPU)
