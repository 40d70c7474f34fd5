"""Writes report.md with its figures, and the same as a single HTML file."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path

from markdown_it import MarkdownIt

from gpt2_jax.ablation.report.analysis import analyze
from gpt2_jax.ablation.report.figures import draw_all
from gpt2_jax.ablation.report.text import markdown
from gpt2_jax.ablation.report.variant import Analysis
from gpt2_jax.ablation.study.definition import read
from gpt2_jax.ablation.study.plan import Plan
from gpt2_jax.ablation.study.results import write_results
from gpt2_jax.ablation.study.store import TrialStore, remove_leftovers
from gpt2_jax.files import ABANDONED_SECONDS, disk_errors, write_atomic

FIGURES = "report"  # folder next to report.md
STYLE = """
body { max-width: 78em; margin: 2em auto; padding: 0 1em; color: #222;
  font: 15px/1.5 system-ui, sans-serif; }
p, ul, h1, h2, h3, pre { max-width: 60em; }
.table { overflow-x: auto; margin: 1em 0; }
table { border-collapse: separate; border-spacing: 0; font-size: 13px; line-height: 1.35; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 0.5em; text-align: left;
  vertical-align: top; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff;
  max-width: min(18em, 35vw); overflow-wrap: break-word; }
@media (max-width: 50em) { td:not(:first-child) { white-space: nowrap; } }
code { font-size: 12px; background: #f4f4f4; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: 0.6em; overflow-x: auto; }
pre code { overflow-wrap: normal; }
img { max-width: min(100%, 900px); }
"""


def write_report(workdir: Path) -> Analysis:
    """Writes results.json, report.md and report.html for the results so far, and returns these.

    Raises:
      UserError: if there is no study, or the disk is full.
    """
    definition = read(workdir)
    plan, store = Plan(definition.study), TrialStore(workdir)
    analysis = analyze(plan, store)
    if kept := write_results(workdir, plan, store):
        analysis.warnings.insert(0, kept)
    remove_leftovers(workdir, time.time() - ABANDONED_SECONDS)
    with disk_errors(f"--workdir={workdir}"):
        folder = workdir / FIGURES
        folder.mkdir(exist_ok=True)
        captions = draw_all(analysis, folder)
        text = markdown(analysis, definition, {f"{FIGURES}/{k}": v for k, v in captions.items()})
        write_atomic(workdir / "report.md", text)
        write_atomic(workdir / "report.html", page(text, workdir))
    return analysis


def page(text: str, folder: Path) -> str:
    """Renders Markdown as one HTML file that embeds its figures; tags in the text are escaped."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>')  # scrolls on a narrow screen
    body = body.replace("</table>", "</table></div>")

    def inline(found: re.Match[str]) -> str:
        data = base64.b64encode((folder / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(rf'src="({FIGURES}/\w+\.png)"', inline, body)
    title = re.sub(r"<[^>]+>", "", body.partition("</h1>")[0])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
