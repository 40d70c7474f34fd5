"""Reference pages generated from the package: commands, config fields, connections, notebook."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from gpt2_jax import cli
from gpt2_jax.cli.main import COMMANDS
from gpt2_jax.placements.registry import IN_BRANCH, IN_BRANCH_SITES, SUPPORTS

ROOT = Path(__file__).parent.parent
NOTEBOOK = "docs/notebooks/python_api.ipynb"


def pages() -> Iterator[tuple[str, str]]:
    """Yields the path and the Markdown of each page."""
    yield "reference/commands.md", commands()
    yield "reference/config.md", config_fields()
    yield "reference/connections.md", connections()
    yield "guides/python.md", notebook(ROOT / NOTEBOOK)


def commands() -> str:
    """Returns the page of all commands and their flags."""
    rows = [
        "# Commands",
        "",
        "`gpt2-jax COMMAND --help` lists the flags of a command and, if it takes a config, the "
        "config fields. Wrong input is reported in one line on stderr, with exit code 2.",
    ]
    for name, (module, meaning) in COMMANDS.items():
        rows += ["", f"## {name}", "", f"`gpt2-jax {name}`: {meaning}.", ""]
        rows += ["| flag | default | meaning |", "|---|---|---|"]
        rows += list(_flags(ROOT / "gpt2_jax" / "cli" / f"{module}.py"))
    return "\n".join(rows) + "\n"


def _flags(path: Path) -> Iterator[str]:
    """Yields a row for each flag that a command's module defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        match ast.unparse(node.func), node.args:
            case "cli.define_config", [meaning]:
                yield _row("config", "unset", ast.literal_eval(meaning))
            case called, [name, default, *rest] if called.startswith("flags.DEFINE_"):
                shown = next(text for text in map(_text, rest) if isinstance(text, str))
                yield _row(ast.literal_eval(name), _default(default), shown)


def _text(node: ast.expr) -> Any:
    """Returns the value of a constant, which may be one that commands share: `cli.NAME`."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id="cli"), attr=attr):
            return getattr(cli, attr)
    return None


def _default(node: ast.expr) -> str:
    """Returns a flag's default; empty if it is computed when the module is imported."""
    text = ast.unparse(node)
    if text in ("None", "[]"):
        return "unset"
    return f"`{text}`" if isinstance(node, ast.Constant) else ""


def _row(name: str, default: str, meaning: str) -> str:
    return f"| `--{name}` | {default} | {escape(meaning).replace('|', chr(92) + '|')} |"


def config_fields() -> str:
    """Returns the page of config fields, which `python -m gpt2_jax.config` prints."""
    command = [sys.executable, "-m", "gpt2_jax.config"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def connections() -> str:
    """Returns the page on what each connection supports."""
    always = ", ".join(f"`{site}`" for site in IN_BRANCH_SITES if site not in IN_BRANCH)
    rows = [
        "# Connections",
        "",
        "`placement.connection` selects how sublayer outputs are combined with the residual "
        "stream. Norm sites and scales that a connection does not support are refused before "
        f"training. All connections support the sites inside a sublayer ({always}).",
        "",
        "| `placement.connection` | norm sites | scales |",
        "|---|---|---|",
    ]
    for name, supports in SUPPORTS.items():
        cells = [", ".join(f"`{one}`" for one in x) for x in (supports.sites, supports.scales)]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def notebook(path: Path) -> str:
    """Returns a notebook as Markdown, with code cells as fenced code blocks."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
