"""The benchmark's clock: what alternates, and what is not counted."""

import pytest

from experiments.bench import clock
from experiments.bench.clock import Budget, InUnits, alternate, ratio
from experiments.bench.scaling import fit_line


class Clock:
    """A clock that stands still but for what contenders take."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def contender(self, name, seconds):
        def run(calls):
            self.log.append((name, calls))
            self.now += seconds * calls

        return run


def test_contenders_alternate_and_warm_up_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    slow_first = iter([100.0])

    def compiled_at_first(calls):
        clock.contender("b", next(slow_first, 0.02))(calls)

    contenders = {"a": clock.contender("a", 0.04), "b": compiled_at_first}
    times = alternate(contenders, Budget(rounds=4, seconds=1e9, sample_seconds=0.05))
    assert times == {"a": pytest.approx([0.04] * 4), "b": pytest.approx([0.02] * 4)}
    # Before each sample a call to settle; samples of about the same length.
    rounds = clock.log[-16:]
    assert rounds == [("a", 1), ("a", 2), ("b", 1), ("b", 3)] * 4
    assert ratio(times["a"], times["b"])["median"] == pytest.approx(2.0)


def test_what_comes_in_units_is_called_by_the_unit(monkeypatch):
    clock = Clock(monkeypatch)
    eight = InUnits(clock.contender("eight", 0.008), 8)  # a call takes 0.001
    contenders = {"eight": eight, "one": clock.contender("one", 0.002)}
    times = alternate(contenders, Budget(rounds=2, sample_seconds=0.02))
    assert times == {
        "eight": pytest.approx([0.001] * 2),
        "one": pytest.approx([0.002] * 2),
    }
    assert clock.log[-4:] == [("eight", 1), ("eight", 3), ("one", 1), ("one", 10)]


def test_three_rounds_when_time_is_up(monkeypatch):
    clock = Clock(monkeypatch)
    contenders = {"a": clock.contender("a", 5.0)}
    assert len(alternate(contenders, Budget(rounds=20, seconds=1.0))["a"]) == 3


def test_the_line_through_exact_points():
    sizes = [1e4, 1e6, 1e8]
    fitted = fit_line(sizes, [2e-4 + 3e-9 * size for size in sizes])
    assert fitted == pytest.approx((2e-4, 3e-9))
