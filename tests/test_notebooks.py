"""The notebooks run from top to bottom, and hold what they say."""

import json
import warnings
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NUMBERS = [f"{number:02}" for number in range(1, 8)]


def test_all_are_there_in_order():
    assert [path.name[:2] for path in NOTEBOOKS] == NUMBERS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        # Jupyter's own, at import and while it talks to the kernel.
        warnings.simplefilter("ignore")
        import nbformat
        from nbclient import NotebookClient

        root = str(path.parent.parent)
        monkeypatch.setenv("PYTHONPATH", root)
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
        book = nbformat.read(path, as_version=4)
        client = NotebookClient(
            book, timeout=120, resources={"metadata": {"path": root}}
        )
        client.execute()
    outputs = [out for cell in book.cells for out in cell.get("outputs", [])]
    assert (
        any("image/png" in out.get("data", {}) for out in outputs) or "05" in path.stem
    )
    told = "".join(out.text for out in outputs if out.get("name") == "stderr")
    assert not told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_lead_somewhere(path):
    text = "".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
    links = [link.split(")")[0] for link in text.split("](")[1:]]
    for link in links:
        assert (path.parent / link).exists(), link
