"""A short run of ``fuzz.py``, and whether it would notice a failure."""

import fuzz

from experiments.errors import UsageError


def test_broken_input_is_a_users_mistake(tmp_path, capsys):
    with fuzz.cache_in(tmp_path / "cache"):
        counts = fuzz.many(100, 1_000_000, tmp_path)
    failed = {kind: n for (kind, came), n in counts.items() if came == "failed"}
    assert not failed, capsys.readouterr().out
    assert sum(counts.values()) == 100
    assert len({kind for kind, _ in counts}) == 5


def test_failures_are_noticed(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    found = fuzz.Fuzz(work)

    def broken(rng, folder):
        raise KeyError("oops")

    def silent(rng, folder):
        raise UsageError("")

    found.kinds |= {"broken": broken, "silent": silent}
    came, trouble = fuzz.run(found, "broken", 0)
    assert came == "failed"
    assert "KeyError: 'oops'" in trouble
    assert fuzz.run(found, "silent", 0) == ("failed", "an error without a message")
