"""The table of config fields: for the documentation and for --help."""

from __future__ import annotations

import textwrap
from functools import partial

from gpt2_jax.config.renamed import RENAMED
from gpt2_jax.config.table import FIELDS


def page() -> str:
    """Returns a page of every field with its default, range and meaning."""
    rows = [
        "# Config fields",
        "",
        "A field is set in a config file (`config.model.n_layer = 4`) or on the command line",
        "(`--config.model.n_layer=4`).",
    ]
    section = None
    for name, field in FIELDS.items():
        if (here := name.rpartition(".")[0]) != section:
            section = here
            rows += ["", f"## {section or 'run'}", "", "| field | default | range | meaning |"]
            rows += ["|---|---|---|---|"]
        start = "unset" if field.optional else f"`{field.default!r}`"
        meaning = field.meaning.replace("|", "\\|")
        choices = f" ({', '.join(field.choices)})" if field.choices else ""
        rows.append(f"| `{name}` | {start} | {field.range()} | {meaning}{choices} |")
    rows += ["", "## Renamed fields", "", "| before | now |", "|---|---|"]
    rows += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    return "\n".join(rows) + "\n"


def help_text() -> str:
    """Returns the fields as a command's --help lists them."""
    rows = []
    for name, field in FIELDS.items():
        start = "unset" if field.optional else repr(field.default)
        details = [f"default {start}", field.range(), " | ".join(field.choices)]
        meaning = field.meaning.replace("`", "")
        rows.append(f"--config.{name}: {meaning} ({'; '.join(filter(None, details))})")
    fill = partial(textwrap.fill, width=100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(map(fill, rows))
