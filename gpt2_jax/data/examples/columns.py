"""The columns that `data.columns` may name, and which of them each form of a file has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpt2_jax.data.examples.fields import parse_fields
from gpt2_jax.errors import UserError

SPANS = {"spans": "", "span_label": "label", "span_start": "start", "span_end": "end"}
# The names that `data.columns` may set, by task, with their default columns; empty means none.
COLUMNS: dict[str, dict[str, str]] = {
    "translate": {"source": "source", "target": "target"},
    "mlm": {"text": "text"},
    "classify": {"text": "text", "second": "", "label": "label"},
    "tag": {"words": "", "tags": "", "text": "text", "context": "", **SPANS},
    "answer": {
        "id": "id",
        "question": "question",
        "context": "context",
        "answers": "answers",
        "text": "text",
        **SPANS,
    },
    "sft": {"prompt": "prompt", "completion": "completion", "messages": "messages"},
}


@dataclass(frozen=True)
class Form:
    """How a file is read.

    Attributes:
      what: what it is, as a predicate. names: of the columns that its reader uses.
    """

    what: str
    names: tuple[str, ...]


def given_columns(task: str, columns: str) -> dict[str, str]:
    """Returns the columns that `data.columns` sets, by name.

    Raises:
      UserError: as `parse_fields`.
    """
    found = parse_fields(columns, dict.fromkeys(COLUMNS[task], ""))
    return {name: column for name, column in found.items() if column}


def check_columns(task: str, columns: str, forms: Iterable[tuple[str, Form]]) -> None:
    """Refuses a name in `data.columns` that no file uses.

    Args:
      forms: the source and the form of each file.

    Raises:
      UserError: naming the first such column, and a source.
    """
    unused = given_columns(task, columns)
    found = list(forms) if unused else []
    used = {name for _, form in found for name in form.names}
    for name, column in unused.items():
        if name not in used and found:
            spec, form = found[0]
            of_spans = form.names and name in ("text", "context", *SPANS)
            raise UserError(
                f"data.columns: {name}={column} has no effect, since source {spec} {form.what}"
                f"; leave it out{', or set spans=COLUMN' * bool(of_spans)}"
            )
