"""How Sphinx makes the site: `make docs`.

The source folder is the repository, so that pages link to README.md and to records in benchmarks/ as they do where
the repository is read.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import layerfold
from layerfold.cli import build_parser

project = "layerfold"
author = "the layerfold developers"
release = version = layerfold.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "docs/**"]
# Folders that no page lies in need not be walked through.
exclude_patterns = [".*", "build", "dist", "layerfold", "tests", "**/__pycache__"]

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autoclass_content = "class"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
# As lists: a field of Sphinx would read "start, end" as a type and a name.
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), "Source", "Paper"]

# A role in a docstring leads somewhere. Types in signatures, which no one wrote as links, may be unknown.
nitpicky = True
nitpick_ignore_regex = [("py:class|py:obj|py:exc", ".*")]

# Drawings in docstrings are no Python.
highlight_language = "text"

templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme = "furo"
html_theme_options = {
    "light_css_variables": {"code-font-size": "81.25%"},
    "dark_css_variables": {"code-font-size": "81.25%"},
}
html_title = f"layerfold {release}"
# The start page lies in docs/, as its source does; whoever opens the folder is sent there.
html_additional_pages = {"index": "to_start.html"}
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


class Commands(SphinxDirective):
    """One section per command of `layerfold`, with what `--help` prints."""

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "86"
        (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
        sections: list[nodes.Node] = []
        for name, parser in commands.choices.items():
            section = nodes.section(ids=[f"layerfold-{name}"], names=[f"layerfold {name}"])
            section += nodes.title(text=f"layerfold {name}")
            section += nodes.literal_block(text=parser.format_help().rstrip(), language="text")
            self.state.document.note_explicit_target(section)
            sections.append(section)
        return sections


def _show_folders_as_text(app: Sphinx, doctree: nodes.document) -> None:
    """Take links to folders of the repository away, which have no page on the site; their text stays."""
    here = Path(doctree["source"]).parent
    for link in list(doctree.findall(pending_xref)):
        if link.get("reftype") == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def _read_docstring(_app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Make pages that a docstring names links, and keep napoleon from reading types into properties."""
    lines[:] = [re.sub(r"\bdocs/(\w+)\.md\b", r":doc:`docs/\1.md </docs/\1>`", line) for line in lines]
    if what in ("property", "attribute"):
        # It looks in the first line alone, and takes what stands before a colon for the type.
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _read_docstring, priority=400)  # napoleon's is 500
    app.add_directive("commands", Commands)
    app.connect("doctree-read", _show_folders_as_text)
