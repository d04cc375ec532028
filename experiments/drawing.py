"""Figures of reports, studies and benchmarks: one look, as PNG and SVG."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.data.files import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which stays apart for every kind of colour vision; shape
# and position say the same as colour everywhere.
BLUE, VERMILION = "#0072B2", "#D55E00"
WIDE, NARROW = 7.0, 5.4  # inches: of a text; such that letters stay legible on a phone
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "svg.fonttype": "path",  # the same letters wherever it is opened
    "svg.hashsalt": "spherical_optax",  # the same file from the same numbers
}


def plain(text: str) -> str:
    r"""Text that a figure shows as it is, though it may be a name of the user's.

    Without this, what stands between two dollar signs is taken for a formula.

    Example:
      >>> print(plain("folder:a$_$b"))
      folder:a\$_\$b
    """
    lines = (shown(line) for line in text.split("\n"))
    return "\n".join(lines).replace("$", r"\$")


@contextmanager
def drawing(
    stem: Path,
    down: int = 1,
    across: int = 1,
    *,
    height: float,
    width: float = WIDE,
    **options: Any,
) -> Iterator[list["Axes"]]:
    """A figure of several panels, saved in the end as ``stem.png`` and ``stem.svg``.

    Args:
      stem: path without ending; its folder is made.
      down: rows of panels.
      across: panels in a row.
      height: of the figure, in inches.
      width: likewise.
      **options: of ``matplotlib.pyplot.subplots``.
    """
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            down,
            across,
            figsize=(width, height),
            layout="constrained",
            squeeze=False,
            **options,
        )
        try:
            yield list(axes.flat)
            _save(figure, stem)
        finally:
            plt.close(figure)


def _save(figure: "Figure", stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    _save_png(figure, Path(f"{stem}.png"))
    figure.savefig(f"{stem}.svg", metadata={"Date": None})
    _shorten(Path(f"{stem}.svg"))


def _save_png(figure: "Figure", path: Path) -> None:
    """With a palette of 256 colours: a third of the size, and no difference to see."""
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200)
    image = Image.open(file).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True, dpi=(200, 200)
    )


def _shorten(svg: Path) -> None:
    """Rounds the coordinates of paths to hundredths of a point: half the size."""

    def round_all(path: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", path[0])

    svg.write_text(re.sub(r'(?<= )d="[^"]*"', round_all, svg.read_text()))
