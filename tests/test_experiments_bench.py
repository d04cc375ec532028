"""The benchmark: what alternates, what is kept, what goes on, what is shown."""

import json
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cases
import jax
import numpy as np
import pytest

from experiments import models
from experiments.bench import (
    bandwidth,
    command,
    jax_side,
    machine,
    plan,
    scaling,
    show,
    step,
    store,
)
from experiments.bench.clock import Budget
from experiments.bench.command import main
from experiments.bench.options import DEFAULT_MODELS
from experiments.bench.rows import ROWS
from experiments.bench.store import read
from experiments.bench.trees import kernels, model_shapes, random_trees
from experiments.locks import lock_folder
from experiments.models.resnet import ResNet

OPTIONAL = ("torch", "adamp", "pytorch_optimizer")
ROOT = Path(__file__).parent.parent
TINY = ("--model", "tiny", "--rounds", "2", "--row-seconds", "0.1")
PLACES = ("jax", "reference")
NEEDS = ("bench", "row", "settings", "environment", "command", "date", "load")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A model of a few weights, and no PyTorch."""
    known = machine.installed_version
    with pytest.MonkeyPatch.context() as patch:
        tiny = partial(ResNet, widths=(4,), blocks=(1,))
        patch.setitem(models.MODELS, "tiny", tiny)
        patch.setattr(
            machine,
            "installed_version",
            lambda package: None if package in OPTIONAL else known(package),
        )
        store.environment.cache_clear()
        yield
    store.environment.cache_clear()


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """Two rows of ``step`` in a file."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    names = ("--optimizers", "adamsrt", "sgdp")
    assert main(["step", *names, *TINY, "--json", str(path)]) == 0
    return path


@pytest.fixture
def results(measured, tmp_path):
    """The same in a file that a test may change."""
    return Path(shutil.copy(measured, tmp_path / "results.json"))


@pytest.fixture
def pretend(results, monkeypatch):
    """From here on ``step`` takes no time, and finds what it found before."""
    found = read(results)["records"][0]["result"]
    monkeypatch.setattr(plan, "measure_step", lambda *args, **options: found)


def test_every_exported_optimizer_is_measured():
    measured = {name.split("_")[0] if "swats" in name else name for name in ROWS}
    exported = {case.name for case in cases.OPTIMIZERS}
    # adamh is a hyperball, and a monitor is no optimizer of its own.
    assert exported - measured <= {"hyperball", "monitor_sphere"}


def test_gradients_are_orthogonal_to_filters():
    shapes = model_shapes("resnet20")
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 272_474
    trees = random_trees(shapes)
    leaves = map(jax.tree.leaves, trees)
    for x, g, label in zip(*leaves, strict=True):
        assert x.dtype == g.dtype == np.float32
        inner = np.abs(np.sum(x * g, axis=tuple(range(x.ndim - 1))))
        if label == "filter":
            assert inner.max() < 1e-5 * np.linalg.norm(x) * np.linalg.norm(g)
        else:
            assert inner.max() > 1e-5 * np.linalg.norm(x) * np.linalg.norm(g)


@pytest.mark.parametrize(("weights", "leaves"), [(1e4, 16), (1e6, 1000), (1e8, 16)])
def test_kernels_have_the_size_that_is_asked_for(weights, leaves):
    sizes = [x.size for x in jax.tree.leaves(kernels(int(weights), leaves))]
    assert len(sizes) == leaves
    assert sum(sizes) == pytest.approx(weights, rel=0.2)


def test_json_is_complete(results):
    document = read(results)
    assert [record["row"] for record in document["records"]] == ["adamsrt", "sgdp"]
    for record in document["records"]:
        assert set(NEEDS) < set(record)
        assert len(record["load"]["before"]) == 3
        environment = document["environments"][record["environment"]]
        assert environment["machine"]["cores"] == machine.cores()
        assert environment["versions"]["jax"] == jax.__version__
        assert environment["versions"]["torch"] is None
        result = record["result"]
        assert result["torch"]["missing"] == "torch is not installed"
        for sample in (*result["seconds"].values(), *result["ratio"].values()):
            low, high = sample["quartiles"]
            assert 0 < sample["least"] <= low <= sample["median"] <= high
            assert sample["n"] == 2
        assert set(result["seconds"]) == {
            *PLACES,
            *(f"{place}_new" for place in PLACES),
        }
        assert set(result["ratio"]) == {"reference", "reference_new"}
    assert document["records"][1]["result"]["reference"] == "sgd"


def test_on_an_accelerator_many_steps_are_one_program(tmp_path, monkeypatch):
    for module in (jax_side, step):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    path = tmp_path / "results.json"
    names = ("--optimizers", "adam", "sgdp")
    assert main(["step", *names, *TINY, "--json", str(path)]) == 0
    document = read(path)
    for record in document["records"]:
        assert set(record["result"]["seconds"]) == set(PLACES)
        assert set(record["result"]["ratio"]) == {"reference"}
    assert "| adam | " in show.to_markdown(document)
    assert "| `adam` | `adam` | 1.00 (1.00 to 1.00) |  |" in (
        show.summary_markdown(document)
    )


def test_goes_on_where_it_was_stopped(results, pretend, capsys, monkeypatch):
    before = read(results)["records"]
    names = ("--optimizers", "adamsrt", "sgdp", "adams")
    again = ["step", *names, *TINY, "--json", str(results)]
    assert main([*again, "--time-limit", "1s"]) == 5
    assert "time is up: 1 of 3 rows are left; the same command goes on" in (
        capsys.readouterr().out
    )
    assert main(again) == 0
    after = read(results)["records"]
    assert after[:2] == before
    assert after[2]["row"] == "adams"
    with monkeypatch.context() as patch:
        patch.setattr(command, "_measure", None)  # nothing is left to measure
        assert main(again) == 0


@pytest.mark.parametrize("change", ["version", "machine", "--overwrite"])
def test_what_was_measured_elsewhere_is_measured_again(results, pretend, change):
    document = json.loads(results.read_text())
    (environment,) = document["environments"].values()
    if change == "version":
        environment["versions"]["source"] = "another"
    if change == "machine":
        environment["machine"]["cpu"] = "another"
    digest = store._digest(environment)
    document["environments"] = {digest: environment}
    for record in document["records"]:
        record |= {"environment": digest, "date": "2001-01-01T00:00:00+00:00"}
    results.write_text(json.dumps(document))
    options = ["--overwrite"] if change == "--overwrite" else []
    names = ("--optimizers", "adamsrt")
    assert main(["step", *names, *TINY, "--json", str(results), *options]) == 0
    records = read(results)["records"]
    old = [record["row"] for record in records if record["date"].startswith("2001")]
    assert old == (["adamsrt", "sgdp"] if change == "machine" else ["sgdp"])
    assert len(records) == len(old) + 1


def test_a_row_that_takes_longer_than_there_is_time_is_left(
    results, pretend, capsys, monkeypatch
):
    ends, measure = [], plan.measure_step

    def slow(*args, **options):
        while not ends:  # else it would go on until it is done
            time.sleep(0.01)
        return measure()

    monkeypatch.setattr(plan, "measure_step", slow)
    monkeypatch.setattr(command, "leave_at_once", ends.append)
    monkeypatch.setattr(machine, "map_memory", lambda: None)  # the row has to begin
    step = ["step", "--optimizers", "adams", "adam", *TINY, "--json", str(results)]
    main([*step, "--time-limit", "6s"])
    assert ends == [5]
    said = capsys.readouterr().out
    assert "time is up: 2 of 2 rows are left; the same command goes on" in said


def test_processes_that_share_a_file_keep_each_others_rows(results):
    before = read(results)["records"]
    stores = [store.Store(results, "a command") for _ in range(2)]
    job = store.Job("step", "adams", before[0]["settings"])
    stores[0].add(job, before[0]["result"], 1.0, None)
    stores[1].add(replace(job, row="adam"), before[0]["result"], 1.0, None)
    rows = [record["row"] for record in read(results)["records"]]
    assert rows == ["adamsrt", "sgdp", "adams", "adam"]


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(plan, "measure_step", None)
    path = tmp_path / ("x" * 240 + ".json")  # beside it, no longer name is possible
    assert main(["step", "--optimizers", "adam", *TINY, "--json", str(path)]) == 2
    errors = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith("load average")
    ]
    assert errors == [f"error: --json {path}: File name too long"]


def test_who_holds_the_folder_for_long_stops_nothing(results, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE", 0.05)
    (record, _) = read(results)["records"]
    held = lock_folder(results.parent)
    job = store.Job("step", "adams", record["settings"])
    store.Store(results, "a command").add(job, record["result"], 1.0, None)
    held.release()
    assert len(read(results)["records"]) == 3


@pytest.mark.parametrize(
    "damage",
    [
        {"bench": "another"},
        {"row": [3]},
        {"settings": None},
        {"settings": {}},
        {"result": {}},
        {"result": None},
        {"date": None},
        {"load": None},
    ],
)
def test_a_file_with_damaged_rows_is_not_used(results, damage, capsys):
    document = json.loads(results.read_text())
    document["records"][0] |= damage
    results.write_text(json.dumps(document))
    for what in ("table", "step"):
        assert main([what, "--json", str(results)]) == 2
        error = capsys.readouterr().err
        assert error == (
            f"error: --json {results}: not a file of python -m experiments.bench\n"
        )


def test_a_file_that_does_not_say_where_it_is_from_is_not_used(results, capsys):
    document = json.loads(results.read_text())
    for environment in document["environments"].values():
        environment.clear()
    results.write_text(json.dumps(document))
    assert main(["step", "--json", str(results)]) == 2
    assert capsys.readouterr().err.startswith(f"error: --json {results}: not a file")


@pytest.mark.parametrize(
    ("what", "keys"),
    [
        ("compile", ("trace", "compile")),
        ("memory", ("state_to_adam",)),
    ],
)
def test_other_measurements_of_an_update(tmp_path, what, keys):
    path = tmp_path / "results.json"
    names = ("--optimizers", "adams", "swats_local_adam")
    assert main([what, *names, *TINY, "--json", str(path)]) == 0
    adams, swats = (record["result"] for record in read(path)["records"])
    assert set(adams["ratio"]) == set(keys)
    if what == "memory":
        assert adams["ratio"]["state_to_adam"] < 0.7
        assert swats["in_place"]["needed"] >= 4.0
        assert adams["into_new_arrays"]["moved"] >= adams["floor"]
        # Nothing is copied before it is written over.
        assert adams["in_place"]["moved"] == adams["into_new_arrays"]["moved"]


def test_bfloat16(tmp_path):
    path = tmp_path / "results.json"
    low = ("--dtype", "bfloat16", "--mu-dtype", "bfloat16")
    names = ("--optimizers", "adamsrt")
    assert main(["step", *names, *TINY, *low, "--json", str(path)]) == 0
    (title,) = {title for title, _, _ in show.tables(read(path)["records"])}
    assert title == "An update of tiny, bfloat16, first moment bfloat16, in place"


def test_training_without_pytorch(tmp_path, capsys):
    path = tmp_path / "results.json"
    tiny = ("--model", "tiny", "--rounds", "1", "--batch-size", "2")
    assert main(["train", *tiny, "--json", str(path)]) == 0
    (record,) = read(path)["records"]
    assert record["result"]["missing"] == "torch is not installed"
    assert record["result"]["images_per_second"]["jax"]["median"] > 0
    assert set(record["result"]["share"]) == {"adam", "adamsrt"}
    assert record["result"]["ratio"]["monitored"]["median"] > 0
    assert "torch is not installed" in capsys.readouterr().out


@pytest.fixture
def small_sizes(monkeypatch):
    """Sizes for ``scaling`` and ``bandwidth`` that take no time."""
    monkeypatch.setattr(plan, "_WEIGHTS", (1000, 10_000))
    monkeypatch.setattr(plan, "_LEAVES", (1, 3))


def test_scaling_is_fitted_and_drawn(small_sizes, tmp_path, capsys, monkeypatch):
    found = scaling.measure_scaling(1000, 1, Budget(rounds=1))
    assert found["weights"] == pytest.approx(1000, rel=0.2)
    assert set(found["seconds"]) == {"adam", "adamsrt", "adamp"}

    def pretend(weights, leaves, budget):
        return {**found, "weights": weights, "leaves": leaves}

    monkeypatch.setattr(plan, "measure_scaling", pretend)
    options = ["--json", str(tmp_path / "all.json"), "--figures", str(tmp_path)]
    assert main(["scaling", "--rounds", "1", *options]) == 0
    sizes = [record["row"] for record in read(tmp_path / "all.json")["records"]]
    assert sizes == ["weights 1,000", "weights 10,000", "leaves 1", "leaves 3"]
    fitted = re.findall(
        r"^(\w+), against (\w+): \d+ µs \+ [\d.]+ [nµ]s a ",
        capsys.readouterr().out,
        re.M,
    )
    names = ("adam", "adamsrt", "adamp")
    assert fitted == [(name, axis) for axis in ("weights", "leaves") for name in names]
    assert {p.suffix for p in tmp_path.glob("scaling.*")} == {".png", ".svg"}


def test_share_of_the_speed_of_a_copy(small_sizes, tmp_path, monkeypatch):
    def pretend(contenders, budget):
        for run in contenders.values():
            run(2)
        return {name: [1.0 if name == "copy" else 8.0] for name in contenders}

    monkeypatch.setattr(bandwidth, "alternate", pretend)
    path = tmp_path / "all.json"
    assert main(["bandwidth", "--json", str(path)]) == 0
    for record in read(path)["records"]:
        # A copy moves two arrays, the update as many as its floor says.
        share = record["result"]["ratio"]["share_of_copy"]["median"]
        assert share == pytest.approx(record["result"]["floor"] / 2 / 8.0, rel=1e-3)


def test_what_does_not_fit_into_memory_is_left_out(small_sizes, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "free_bytes", lambda: 500_000)
    assert main(["scaling", "--rounds", "1"]) == 0
    assert "left out: needs 0.0 GB, free are 0.0" in capsys.readouterr().out


def test_markdown_and_figures(results, tmp_path, capsys):
    figures = tmp_path / "figures"
    assert main(["table", "--json", str(results), "--figures", str(figures)]) == 0
    text = capsys.readouterr().out
    assert "### An update of tiny, float32, in place" in text
    assert re.search(r"^\| adamsrt \| [\d.]+ \| adam \| [\d.]+ \(", text, re.M)
    assert "python -m experiments.bench step --optimizers adamsrt sgdp" in text
    assert {p.name for p in figures.iterdir()} == {"step_ratios.png", "step_ratios.svg"}


def test_summary_goes_between_the_marks(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{show.BEGIN}\nold\n{show.END}\nafter\n")
    table = ["table", "--json", str(results), "--readme", str(readme)]
    assert main(table) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{show.BEGIN}\n")
    assert text.endswith(f"{show.END}\nafter\n")
    assert "| `adamsrt` | `adam` | " in text
    assert "old" not in text
    assert main(table) == 0
    assert readme.read_text() == text


def test_summary_is_of_one_model(results):
    document = json.loads(results.read_text())
    other = json.loads(results.read_text())["records"]
    for record in other:
        record["settings"]["model"] = "another"
        record["result"]["ratio"]["reference"]["median"] = 12.34
    alone = show.summary_markdown(document)
    document["records"] += other
    assert show.summary_markdown(document).count("| 12.34 (") == 2  # the last one's
    for record in document["records"][:2]:
        record["settings"]["model"] = DEFAULT_MODELS["step"]
    mixed = show.summary_markdown(document)
    assert mixed.partition("Medians")[0] == alone.partition("Medians")[0]


def test_table_in_the_readme_is_that_of_the_results():
    readme = (ROOT / "README.md").read_text()
    results = ROOT / "experiments" / "results" / "bench_cpu.json"
    if not results.exists():
        pytest.skip("no results are kept")
    _, _, rest = readme.partition(show.BEGIN)
    assert rest.partition(show.END)[0].strip() == (
        show.summary_markdown(read(results)).strip()
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["speed"], "WHAT: unknown name 'speed'; known: step, compile, "),
        (["step", "--optimizers", "adamx"], "--optimizers: unknown name 'adamx'; kn"),
        (["step", "--optimizers"], "--optimizers: name one at least, or all"),
        (["step", "--model", "resnet"], "--model: unknown name 'resnet'; known: "),
        (["step", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["train", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["step", "--row-seconds", "nan"], "--row-seconds must be a finite number > 0"),
        (["step", "--time-limit", "soon"], "--time-limit must be a time like 90s, "),
        (["table"], "table needs --json FILE"),
        (["table", "--json", "missing.json"], "--json missing.json: No such file"),
        (["step", "--json", "other.json"], "--json other.json: not a file of python"),
        (["step", "--json", "deep.json"], "--json deep.json: not a file of python -m"),
        (["step", "--json", "folder"], "--json folder: Is a directory"),
        (["step", "--json", "other.json/x"], "--json other.json: File exists"),
        (["step", "--readme", "other.json"], "--readme goes with table alone"),
        (
            ["table", "--json", "empty.json", "--figures", "other.json"],
            "--figures other.json: File exists",
        ),
        (
            ["table", "--json", "empty.json", "--readme", "other.json"],
            "--readme other.json: no lines '<!-- bench: begin -->' and ",
        ),
    ],
)
def test_a_mistake_is_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text('{"runs": []}')
    Path("deep.json").write_text("[" * 100_000)
    Path("folder").mkdir()
    empty = {"format": store.FORMAT, "environments": {}, "records": []}
    Path("empty.json").write_text(json.dumps(empty))
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
