"""How Sphinx builds the site: `make docs`. Nothing is fetched, and every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from generated import fill  # beside this file, which is no package
from sphinx.application import Sphinx

project = "Headrace"
author = "The Headrace authors"
copyright = "The Headrace authors"
html_title = "Headrace"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "__pycache__"]

# Pages are Markdown; headings have the anchors that GitHub gives them.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

# Docstrings: `name` is code, sections are Google's, signatures are short.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_static_path = []
pygments_style = "friendly"
pygments_dark_style = "github-dark"
# Quotation marks and ellipses, but no dashes: --log is what is typed.
smartquotes_action = "qe"
copybutton_prompt_text = r"\$ |> "
copybutton_prompt_is_regexp = True


def setup(app: Sphinx) -> None:
    """Let pages have generated parts, and open only the branch of the navigation that a page is in."""

    def read(app: Sphinx, page: str, source: list[str]) -> None:
        source[0] = fill(source[0])

    def collapse(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
        # With all fifty decisions in every page's navigation a third of the build was spent on it.
        toctree = context.get("toctree")
        if toctree is not None:
            context["toctree"] = lambda **options: toctree(**{**options, "collapse": True})

    app.connect("source-read", read)
    app.connect("html-page-context", collapse, priority=400)  # before the theme's own
