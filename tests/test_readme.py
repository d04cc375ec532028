"""The README: its examples run, and what it names exists."""

import inspect
import re
from pathlib import Path

import pytest

import spherical_optax as so

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example):
    exec(compile(example, "README.md", "exec"), {})


def test_every_export_is_mentioned():
    missing = [name for name in so.__all__ if name not in README]
    assert not missing


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.M))
    assert named
    assert named <= targets


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    places = re.findall(r"`((?:spherical_optax|experiments|tests)/[\w./-]*)`", README)
    assert not [name for name in links + places if not (ROOT / name).exists()]


@pytest.mark.parametrize("name", so.__all__)
def test_public_docstring_has_an_example(name):
    thing = getattr(so, name)
    if callable(thing) or inspect.ismodule(thing):
        assert ">>>" in inspect.getdoc(thing)
