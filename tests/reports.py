"""Reports of run folders, and what they show."""

import json

from experiments.report.columns import columns_of
from experiments.report.command import main
from experiments.results import find_runs


def columns(runs):
    found, unreadable = find_runs([runs])
    assert unreadable == []
    return columns_of(found)


def report(runs, *options):
    """Writes the report; returns the Markdown."""
    assert main([str(runs), *options]) == 0
    return (runs / "report/report.md").read_text()


def tables(runs):
    """The tables of the report that was written."""
    return json.loads((runs / "report/results.json").read_text())["tables"]
