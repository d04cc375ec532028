"""What a compiled update reads and writes, counted in its text."""

import doctest
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import targets, traffic
from experiments.bench.command import main
from experiments.bench.memory import measure_memory
from experiments.bench.rows import ROWS
from experiments.bench.traffic import measure_traffic, traffic_of
from experiments.errors import UsageError

KERNELS = {"a": jax.ShapeDtypeStruct((3, 3, 64, 64), "float32")}
LABELS = {"a": "filter"}
ON_A_TPU = """
HloModule jit_step, is_scheduled=true

%part (p.1: f32[64]) -> f32[64] {
  ROOT %p.1 = f32[64]{0} parameter(0)
}

ENTRY %main (x.1: f32[4,64], g.1: f32[4,64], n.1: s32[]) -> (f32[4,64], s32[]) {
  %x.1 = f32[4,64]{1,0:T(8,128)} parameter(0), sharding={replicated}
  %g.1 = f32[4,64]{1,0:T(8,128)} parameter(1)
  %n.1 = s32[]{:T(128)} parameter(2)
  %copy-start = (f32[4,64]{1,0:T(8,128)S(1)}, f32[4,64]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x.1)
  %copy-done = f32[4,64]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[4,64]{1,0:T(8,128)}), f32[1,64]{1,0:T(8,128)S(1)}, \
s32[]{:S(2)}) slice-start(%g.1), slice={[0:1], [0:64]}
  %slice-done = f32[1,64]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %slice-start.1 = ((f32[4,64]{1,0:T(8,128)}), f32[3,64]{1,0:T(8,128)S(1)}, \
s32[]{:S(2)}) slice-start(%g.1), slice={[1:4], [0:64]}
  %slice-done.1 = f32[3,64]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %joined = f32[4,64]{1,0:T(8,128)S(1)} custom-call(%slice-done, %slice-done.1), \
custom_call_target="ConcatBitcast"
  %sums = (f32[64]{0:T(128)S(1)}, f32[64]{0:T(128)}) fusion(%copy-done, %joined), \
kind=kLoop, calls=%part
  %first = f32[64]{0:T(128)S(1)} get-tuple-element(%sums), index=0
  %fusion = f32[4,64]{1,0:T(8,128)} fusion(%copy-done, %first, %g.1), kind=kLoop, \
calls=%part
  ROOT %tuple = (f32[4,64]{1,0:T(8,128)}, /*index=1*/s32[]{:T(128)}) \
tuple(%fusion, %n.1)
}
"""


def test_each_array_counts_where_it_comes_from_main_memory():
    """Both operands as they come in, the second again, a sum, and the result."""
    leaf, sum_ = 4 * 64 * 4, 64 * 4
    assert traffic_of(ON_A_TPU) == (2, leaf + leaf + sum_ + leaf + leaf)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("bf16[8]", 16), ("pred[3]", 3), ("s4[3]", 2), ("f8e4m3fn[8]", 8), ("c64[]", 8)],
)
def test_types_have_their_sizes(kind, size):
    """All are operand and result of the only kernel."""
    text = f"\nENTRY %main {{\n  %x = {kind}{{0}} parameter(0)\n"
    text += f"  ROOT %y = {kind}{{0}} copy(%x)\n}}\n"
    assert traffic_of(text) == (1, 2 * size)


@pytest.mark.parametrize("operation", ["while", "conditional", "call"])
def test_what_runs_nobody_knows_how_often_is_not_counted(operation):
    """A number would be wrong."""
    text = "\nENTRY %main {\n  %x = f32[8]{0} parameter(0)\n"
    text += f"  ROOT %y = f32[8]{{0}} {operation}(%x), body=%b\n}}\n"
    assert traffic_of(text) == (1, None)


def test_a_loop_over_two_arrays_into_one():
    """Three arrays, whatever compiles it."""
    x = jax.ShapeDtypeStruct((1000, 1000), "float32")
    step = jax.jit(lambda x, g: x - 0.1 * g, donate_argnums=0)
    program = step.lower(x, x).compile().as_text() or ""
    assert traffic_of(program) == (1, 3 * x.size * 4)


def test_here():
    """AdamSRT has kernels for its sums, too; the ratio is that of the arrays."""
    adam = measure_traffic("adam", KERNELS, LABELS, None, targets.HERE)
    srt = measure_traffic("adamsrt", KERNELS, LABELS, None, targets.HERE)
    assert 7 <= adam["arrays"] < 14
    assert adam["ratio"]["arrays"] == 1
    assert 0.5 < srt["ratio"]["arrays"] == srt["arrays"] / adam["arrays"] < 3
    assert srt["kernels"] > adam["kernels"]
    memory = measure_memory("adamsrt", KERNELS, LABELS, None)["in_place"]
    assert srt["peak_to_needed"] == pytest.approx(memory["peak_to_needed"], rel=1e-3)
    assert (srt["device"], srt["compiler"]) == ("cpu", None)


def test_a_program_with_a_loop_of_its_own_is_said_to_be_unknown(capsys, monkeypatch):
    """Not a number, and not an end of the run."""

    def build(learning_rate):
        def update(grads, state, params=None):
            del params
            steps = jax.lax.fori_loop(0, state, lambda _, g: jnp.sin(g), grads["a"])
            return {"a": -learning_rate * steps}, state + 1

        return ROWS["sgd"].build(1.0)._replace(init=lambda _: 3, update=update)

    row = ROWS["adabound"]
    monkeypatch.setitem(ROWS, "adabound", type(row)(build, "adam", None, 7))
    result = measure_traffic("adabound", KERNELS, LABELS, None, targets.HERE)
    assert (result["arrays"], result["ratio"]["arrays"]) == (None, None)


def test_from_the_command_to_a_file_and_a_table(tmp_path, capsys):
    """Once; the second time it is known."""
    path = tmp_path / "traffic.json"
    args = ["traffic", "--optimizers", "sgd", "sgdmrt", "--model", "resnet20"]
    args += ["--json", str(path)]
    assert main(args) == 0
    assert "[2/2] traffic sgdmrt: kernels" in capsys.readouterr().out
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "[2/2]" not in shown
    assert "does to the memory of this machine" in shown
    records = json.loads(path.read_text())["records"]
    assert [record["row"] for record in records] == ["sgd", "sgdmrt"]
    assert {record["settings"]["target"] for record in records} == {"here"}
    assert main(["table", "--json", str(path)]) == 0
    assert "| sgdmrt |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["traffic", "--target", "v4"], "--target"),
        (["step", "--target", "h100"], "--target goes with traffic alone"),
    ],
)
def test_targets_that_cannot_be_used(args, said, capsys):
    """An error of the user's, before anything is measured."""
    assert main(args) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_without_the_plugin_the_error_says_which_extra_has_it(
    target, error, monkeypatch, capsys
):
    """The extras are those of the project."""

    def refuse(*_, **__):
        raise error("support not installed\nmore")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", refuse)
    assert main(["traffic", "--target", target]) == 2
    extra = targets.TARGETS[target].extra
    said = capsys.readouterr().err
    assert f'pip install ".[{extra}]"' in said
    assert "support not installed" in said
    with pytest.raises(UsageError, match="--target"):
        targets.device_of(target)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_an_accelerator_that_is_not_here(target):
    """Adam moves seven arrays, where loops have several results."""
    if targets.compiler_of(target) is None:
        pytest.skip(f"nothing here compiles for {target}")
    adam = measure_traffic("adam", KERNELS, LABELS, None, target)
    assert adam["arrays"] == pytest.approx(7, abs=0.1)
    assert adam["compiler"] == targets.compiler_of(target)


def test_examples():
    """Those of docstrings."""
    assert doctest.testmod(traffic) == (0, 1)
