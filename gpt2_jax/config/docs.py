"""The list of config fields, for the documentation and for --help."""

from __future__ import annotations

import textwrap
from functools import partial

from gpt2_jax.config.renamed import RENAMED
from gpt2_jax.config.table import FIELDS


def page() -> str:
    """Returns a Markdown page with the default, range and meaning of every field."""
    rows = [
        "# Config fields",
        "",
        "Set a field in a config file (`config.model.n_layer = 4`) or on the command line",
        "(`--config.model.n_layer=4`). `None` unsets a field that is unset by default:",
        "`--config.train.epochs=None`.",
    ]
    section = None
    for name, field in FIELDS.items():
        if (prefix := name.rpartition(".")[0]) != section:
            section = prefix
            rows += ["", f"## {section or 'general'}", "", "| field | default | range | meaning |"]
            rows += ["|---|---|---|---|"]
        default = "unset" if field.optional else f"`{field.default!r}`"
        meaning = field.meaning.replace("|", "\\|")
        choices = f" ({', '.join(field.choices)})" if field.choices else ""
        rows.append(f"| `{name}` | {default} | {field.range()} | {meaning}{choices} |")
    rows += ["", "## Renamed fields", "", "| before | now |", "|---|---|"]
    rows += [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    return "\n".join(rows) + "\n"


def help_text() -> str:
    """Returns the text that --help prints about all fields."""
    rows = []
    for name, field in FIELDS.items():
        default = "unset" if field.optional else repr(field.default)
        details = [f"default {default}", field.range(), " | ".join(field.choices)]
        meaning = field.meaning.replace("`", "")
        rows.append(f"--config.{name}: {meaning} ({'; '.join(filter(None, details))})")
    fill = partial(textwrap.fill, width=100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(map(fill, rows))
