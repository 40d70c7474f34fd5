"""report.md with its figures, and the same as one HTML file."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

from gpt2_jax.ablate.campaign.cells import Cells, Plan
from gpt2_jax.ablate.campaign.definition import read
from gpt2_jax.ablate.campaign.results import write_results
from gpt2_jax.ablate.report.analysis import analyse
from gpt2_jax.ablate.report.figures import draw_all
from gpt2_jax.ablate.report.text import markdown
from gpt2_jax.ablate.report.variant import Analysis
from gpt2_jax.files import disk_errors, write_atomic

FIGURES = "report"  # folder beside report.md
STYLE = """
body { max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222;
  font: 15px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block;
  overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25em 0.7em; text-align: left; }
code { font-size: 12px; background: #f4f4f4; }
pre { background: #f4f4f4; padding: 0.6em; overflow-x: auto; }
img { max-width: 100%; }
"""


def write_report(workdir: Path) -> Analysis:
    """Writes results.json and report.md and report.html of what is there, and returns that.

    Raises:
      UserError: if there is no campaign, or no room.
    """
    definition = read(workdir)
    plan, cells = Plan(definition.campaign), Cells(workdir)
    found = analyse(plan, cells)
    write_results(workdir, plan, cells)
    with disk_errors(f"--workdir={workdir}"):
        folder = workdir / FIGURES
        folder.mkdir(exist_ok=True)
        captions = draw_all(found, folder)
        text = markdown(found, definition, {f"{FIGURES}/{k}": v for k, v in captions.items()})
        write_atomic(workdir / "report.md", text)
        write_atomic(workdir / "report.html", page(text, workdir))
    return found


def page(text: str, folder: Path) -> str:
    """Returns Markdown as one HTML file with its pictures inside; tags in the text are escaped."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inline(found: re.Match[str]) -> str:
        data = base64.b64encode((folder / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(rf'src="({FIGURES}/\w+\.png)"', inline, body)
    title = re.sub(r"<[^>]+>", "", body.partition("</h1>")[0])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
