"""The storage of a search: shared, cut short, full."""

import pytest

from experiments.search_space import parse_space
from experiments.study import Search, open_storage


def test_worker_goes_on_after_half_a_line_of_another(tmp_path):
    pytest.importorskip("optuna")
    space = parse_space("adam", ["weight_decay=0.3,0,0.1"])
    journal = tmp_path / "sweep.journal"
    with open_storage(str(journal)) as storage:
        search = Search(storage, "a", space, [], trials=None, warmup=1)
        with journal.open("a") as file:
            file.write('{"op_code":4,"wor')
        trial = search.take(lambda params: False)
        assert trial
        search.fail(trial, "broke")
    with open_storage(str(journal)) as storage:
        search = Search(storage, "a", space, [], trials=None, warmup=1)
        assert search.counts() == {"failed": 1, "waiting": 2}


def test_half_a_line_is_cut_off_while_no_worker_writes(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    journal = tmp_path / "sweep.journal"
    journal.write_text('{"op_code":0,')
    lock = optuna.storages.journal.JournalFileSymlinkLock
    acquire = lock.acquire

    def watched(self):
        assert journal.read_text() == '{"op_code":0,'
        return acquire(self)

    monkeypatch.setattr(lock, "acquire", watched)
    with open_storage(str(journal)):
        assert journal.read_text() == ""
    assert list(tmp_path.iterdir()) == [journal]  # the lock is given back


def test_lock_of_a_killed_worker_leads_to_the_journal(tmp_path, monkeypatch):
    """Optuna waits forever for one that does not."""
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    lock = optuna.storages.journal.JournalFileSymlinkLock
    with open_storage("runs/sweep.journal") as storage:
        monkeypatch.setattr(lock, "release", lambda self: None)
        optuna.create_study(storage=storage)
    assert (tmp_path / "runs/sweep.journal.lock").samefile("runs/sweep.journal")


def test_full_disk_is_said_of_the_database(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    sqlalchemy = pytest.importorskip("sqlalchemy")

    def full(session):
        raise sqlalchemy.exc.OperationalError("", {}, Exception("disk is full"))

    place = str(tmp_path / "sweep.db")

    def begin():
        with open_storage(place) as storage:
            monkeypatch.setattr(sqlalchemy.orm.Session, "commit", full)
            optuna.create_study(storage=storage)

    with pytest.raises(OSError, match=f"--storage {place}: .* disk is full$"):
        begin()
