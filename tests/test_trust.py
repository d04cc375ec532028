"""What nobody has to take on trust: no pickle, no unsafe archives, a true page."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("spherical_optax", "experiments", ".ci", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# Modules that run what they read.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
PAGE = ROOT / "docs/promises.md"


def unsafe_uses(tree):
    """What in a program could run what it reads, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from ((node.lineno, n) for n in names if n.split(".")[0] in UNSAFE)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if keywords.get("allow_pickle", "False") != "False" or called in (
            *("eval", "exec", "torch.load", "yaml.load", "os.system"),
        ):
            yield node.lineno, called
        if called.endswith((".extract", ".extractall")) and "data" not in (
            keywords.get("filter", "")
        ):
            yield node.lineno, called


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_that_is_read_is_run(path):
    assert list(unsafe_uses(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "np.load(f, allow_pickle=True)",
        "archive.extractall(place)",
        "eval(text)",
    ],
)
def test_it_would_be_noticed(line):
    assert len(list(unsafe_uses(ast.parse(line)))) == 1


def rows():
    """The rows of the page of promises, without the heads of the tables."""
    lines = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    return [row for row in lines if row[0] != "promise" and set(row[0]) != {"-"}]


def test_every_promise_has_a_test_and_a_figure():
    assert len(rows()) > 25
    for row in rows():
        assert len(row) == 3, row
        assert all(row), row
        assert not any(re.fullmatch("[A-Z]+", cell) for cell in row), row


def test_what_the_promises_name_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for row in rows():
        for name in re.findall(r"`([^`]+)`", row[1]):
            if name.startswith("make "):
                assert name.split()[1] in targets, row
            elif name.startswith("python -m "):
                module = ROOT / name.split()[2].replace(".", "/")
                assert module.is_dir() or module.with_suffix(".py").is_file(), row
            else:
                assert (ROOT / name).exists(), row
        assert "`" in row[1], row
