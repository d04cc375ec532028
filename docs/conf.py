"""Settings of Sphinx, which builds the documentation: `make docs`.

Sphinx, since the docstrings hold mathematics as reStructuredText, and since references
between them are checked; MyST and MyST-NB read the pages and notebooks beside them.
"""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import formulas  # noqa: E402
import pictures  # noqa: E402
from docutils import nodes  # noqa: E402

import spherical_optax  # noqa: E402

project = "spherical_optax"
author = copyright = "The spherical_optax developers"
version = release = spherical_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "README.md", "**.ipynb_checkpoints"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# Notebooks run while the pages are built; what they print is cached by their content.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the signatures have them, in short
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Differences", "notes_style")]
napoleon_use_ivar = True

# A name in a docstring that leads nowhere is a warning, and a warning ends the build;
# other projects' names are left as they are, so that no network is needed.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(optax|jax|flax|chex|collections|typing|spherical_optax\.labels)\..*"),
    (r"py:(class|obj)", r"optional|callable|Any"),
]

html_theme = "furo"
html_math_renderer = "mathml"  # what browsers draw themselves, from disk as well
html_title = f"spherical_optax {release}"
html_static_path = ["static"]
html_css_files = ["formulas.css"]


def setup(app):
    """Brings in what is made elsewhere: notebooks, studies and pictures of paths."""
    copy(ROOT / "notebooks", HERE / "notebooks", "*.ipynb")
    for folder in sorted((ROOT / "experiments" / "results" / "studies").glob("*/")):
        target = HERE / "studies" / folder.name
        copy(folder / "figures", target / "figures", "*.png")
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", target / "index.md")
    pictures.draw_all(HERE / "pictures")
    app.connect("autodoc-process-signature", shorten)
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))


def write_inline(translator, node):
    """Writes a formula within a line."""
    translator.body.append(formulas.inline(node.astext()))
    raise nodes.SkipNode


def write_block(translator, node):
    """Writes a formula of its own."""
    translator.body.append(formulas.block(node.astext()))
    raise nodes.SkipNode


def copy(source, target, pattern):
    """Copies the files of a folder that fit a pattern."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.glob(pattern)):
        shutil.copy(file, target / file.name)


def shorten(app, what, name, obj, options, signature, returns):
    """Signatures without types, which the text explains better."""
    del app, what, name, obj, options
    return signature and re.sub(r"<function (\w+) at \w+>", r"\1", signature), None
