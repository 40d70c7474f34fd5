"""Hooks of `mkdocs build`: generated pages, the gallery's navigation, and equations."""

from __future__ import annotations

from typing import Any

from mkdocs.structure.files import File, Files

from website import gallery, reference
from website.equations import render_math

GALLERY = "Gallery"


def on_config(config: Any) -> Any:
    """Adds a page for each preset to the navigation, by family."""
    for entry in config.nav:
        if GALLERY in entry:
            entry[GALLERY] = ["gallery/index.md"]
            for title, names in gallery.families().items():
                entry[GALLERY].append({title: [{name: f"gallery/{name}.md"} for name in names]})
            entry[GALLERY].append("gallery/oracles.md")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages generated from the catalogue, the config and the notebook."""
    for made in (gallery.pages(), reference.pages()):
        for path, text in made:
            files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Converts the formulas of a page to MathML."""
    del page, config, files
    return render_math(html)
