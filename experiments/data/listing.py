"""``python -m experiments.data list``: what there is on this machine."""

import importlib.util
from collections.abc import Sequence

from experiments.data.cache import cache_root, entries
from experiments.data.downloads import Needed, needed_archives
from experiments.data.prepared import data_dir, find_prepared
from experiments.data.preparing import has_tensorflow
from experiments.data.recipes import RECIPES
from experiments.errors import UsageError


def list_datasets() -> str:
    """A table of every data set: its name, its state, and what is to be known."""
    rows = [("digits", "available", "comes with scikit-learn")]
    rows += [(name, *_state(name)) for name in RECIPES]
    rows.append(("folder:PATH", "available", "a folder or tar archive of yours, with"))
    rows.append(("", "", "train/CLASS/* and test/CLASS/*"))
    lines = [f"{name:<14} {state:<10} {detail}" for name, state, detail in rows]
    lines += ["", f"tensorflow-datasets: {data_dir()}", f"decoded: {cache_root()}"]
    lines += [f"  {source} ({_size(size)})" for source, _, size in entries()]
    return "\n".join(lines)


def _state(name: str) -> tuple[str, str]:
    """In a word, and in a few more."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        return "missing", "needs pip install 'spherical-optax[datasets]'"
    try:
        prepared = find_prepared(name)
    except UsageError as error:
        return "unusable", str(error)
    if prepared is not None:
        size = sum(file.stat().st_size for file in prepared.path.iterdir())
        return "prepared", f"{prepared.path} ({_size(size)})"
    needed = needed_archives(name)
    missing = [archive for archive in needed if not archive.is_there()]
    return ("missing", _lacks(missing)) if missing else ("archived", _archived())


def _archived() -> str:
    how = "all archives are there; prepared at first use"
    return how if has_tensorflow() else f"{how}, for which TensorFlow is not installed"


def _lacks(missing: Sequence[Needed]) -> str:
    names = ", ".join(f"{a.filename} ({_size(a.size)})" for a in missing)
    if missing[0].by_hand:
        return f"{names}: download by hand, then import"
    how = "downloaded and prepared at first use, or import it"
    lacks = "" if has_tensorflow() else "; TensorFlow is not installed"
    return f"{names}: {how}{lacks}"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
