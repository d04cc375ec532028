"""Settings of the allocator: a program starts anew, once, unless the user has a say."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import allocator, launch
from experiments.bench import machine

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="settings of the GNU C library"
)
START = """
import os, sys
from experiments.allocator import start_with
print(os.getpid(), sys.argv[1], os.environ.get("SETTING"), flush=True)
start_with({"SETTING": "7"})
print("goes on")
"""


class Starts:
    """Catches programs that would start, and the environment they would have."""

    def __init__(self, monkeypatch, environment):
        self.calls, self._patch = [], monkeypatch
        self._set(environment)
        monkeypatch.setattr(os, "execve", self._start)

    def _set(self, environment):
        self._patch.setattr(os, "environ", {"PATH": "/bin", **environment})

    def _start(self, program, arguments, environment):
        self.calls.append((program, arguments, environment))
        self._set(environment)


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """The file in which Linux says who gets huge pages."""
    monkeypatch.setattr(allocator, "_WHO_GETS_THEM", tmp_path / "enabled")
    return tmp_path / "enabled"


def test_a_program_starts_anew_once_and_stays_the_same_process():
    environment = {k: v for k, v in os.environ.items() if k != "SETTING"}
    process = subprocess.Popen(
        [sys.executable, "-c", START, "an argument"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**environment, "PYTHONPATH": "."},
    )
    printed, _ = process.communicate()
    assert process.returncode == 0
    assert printed.splitlines() == [
        f"{process.pid} an argument None",
        f"{process.pid} an argument 7",
        "goes on",
    ]


@pytest.mark.parametrize(
    ("who", "starts"),
    [
        ("always [madvise] never\n", 1),
        ("[always] madvise never\n", 0),
        ("always madvise [never]\n", 0),
        (None, 0),
    ],
)
def test_huge_pages_where_they_are_given_on_request(monkeypatch, pages, who, starts):
    if who:
        pages.write_text(who)
    begun = Starts(monkeypatch, {})
    allocator.use_huge_pages()
    allocator.use_huge_pages()  # in the program that was started
    assert len(begun.calls) == starts
    for program, arguments, environment in begun.calls:
        assert (program, arguments) == (sys.executable, sys.orig_argv)
        assert environment == {"PATH": "/bin", **allocator.HUGE_PAGES}


def test_tunables_of_the_user_are_left_alone(monkeypatch, pages):
    pages.write_text("always [madvise] never\n")
    begun = Starts(monkeypatch, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
    allocator.use_huge_pages()
    assert begun.calls == []


class StartedAnewError(Exception):
    """In place of the program that would start."""


@pytest.mark.parametrize(
    "command",
    ["experiments.train", "experiments.find_lr", "experiments.studies.__main__"],
)
def test_what_trains_has_huge_pages(monkeypatch, pages, command):
    def start(program, arguments, environment):
        raise StartedAnewError(environment["GLIBC_TUNABLES"])

    pages.write_text("always [madvise] never\n")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delitem(sys.modules, command, raising=False)
    monkeypatch.setattr(os, "execve", start)
    with pytest.raises(StartedAnewError, match="hugetlb=1"):
        runpy.run_module(command, run_name="__main__")


def test_runs_of_a_grid_begin_with_huge_pages(monkeypatch, tmp_path):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert launch._environment(tmp_path).items() >= allocator.HUGE_PAGES.items()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert launch._environment(tmp_path)["GLIBC_TUNABLES"].endswith("hugetlb=0")


@pytest.mark.parametrize("set_before", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_the_benchmark_keeps_freed_memory(monkeypatch, set_before):
    begun = Starts(monkeypatch, set_before)
    machine.keep_freed_memory()
    machine.keep_freed_memory()
    assert len(begun.calls) == (not set_before)
    for *_, environment in begun.calls:
        assert environment["MALLOC_MMAP_MAX_"] == "0"
        assert environment.items() >= allocator.HUGE_PAGES.items()
