"""The documentation: complete, without dead links, and building without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spherical_optax as so

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MADE = {"_build", "notebooks", "studies", "pictures"}  # while it is built
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if page.relative_to(DOCS).parts[0] not in MADE
]
TEXT = {page: page.read_text() for page in PAGES}


def test_every_public_name_is_in_the_reference():
    shown = set(
        re.findall(r"\.\. (?:autofunction|data):: (\w+)", "".join(TEXT.values()))
    )
    assert shown == set(so.__all__) - {"geometry"}
    assert (
        "automodule:: spherical_optax.geometry" in TEXT[DOCS / "reference/geometry.md"]
    )


def test_every_optimizer_has_a_page_and_a_picture():
    sys.path.insert(0, str(DOCS))
    try:
        import pictures
    finally:
        sys.path.remove(str(DOCS))
    for name in pictures.OPTIMIZERS:
        text = TEXT[DOCS / "optimizers" / f"{name}.md"]
        assert f"../pictures/{name}.svg" in text
        assert f"autofunction:: {name}" in text
    pages = {page.stem for page in (DOCS / "optimizers").glob("*.md")} - {"index"}
    assert pages == set(pictures.OPTIMIZERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_on_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    for block in re.findall(r"```python\n(.*?)```", TEXT[page], re.DOTALL):
        exec(compile(block, str(page), "exec"), {})


def test_the_pages_build_without_a_warning(tmp_path):
    # The notebooks run in a test of their own.
    options = ["-W", "--keep-going", "-q", "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", *options, "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "html/optimizers").glob("*.html"))
    assert len(pages) > 10
    for page in (page for page in pages if page.stem != "index"):
        shown = page.read_text()
        assert f'src="../_images/{page.stem}.svg"' in shown, page.stem
        for part in ("Parameters", "Example", "Differences", "<math"):
            assert part in shown, f"{page.stem} has no {part}"
        assert not re.search(r"\\(?:frac|sqrt|leftarrow|qquad)", shown), page.stem
