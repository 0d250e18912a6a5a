"""Sphinx's configuration; pages that list keys, methods and tasks are written from the code (`generate.py`)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import generate  # noqa: E402

import lorax  # noqa: E402

project = "lorax"
author = "the lorax-bench developers"
copyright = author
version = release = lorax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "lorax"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
# Docstrings are prose with `names` in single backquotes.
default_role = "literal"
# Pages of the repository are shown as they are; they link to files that the site does not hold, and begin where they
# begin in the page that includes them.
suppress_warnings = ["myst.xref_missing", "myst.header"]

generate.write(Path(__file__).parent / "_generated")


def setup(app):
    """Keep docstrings of attributes as they are: napoleon takes what stands before their first colon for a type."""
    kept = {}

    def keep(app, what, name, obj, options, lines):
        if what in ("attribute", "property"):
            kept[name] = list(lines)

    def put_back(app, what, name, obj, options, lines):
        lines[:] = kept.pop(name, lines)

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)
