"""The labels of a data set and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpt2_jax.data.examples.records import LabeledText, Record, SpanText, TaggedWords
from gpt2_jax.data.text import short_list
from gpt2_jax.errors import UserError, counted, quoted

OUTSIDE = "O"


class Labels:
    """Label names by id.

    Attributes:
      names: in order of their ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._ids = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def id(self, name: str, where: str) -> int:
        """Returns the id of a label.

        Raises:
          UserError: if it is unknown, naming the file and line.
        """
        if name not in self._ids:
            raise UserError(
                f"{where}: the training data has no label {quoted(name, 40)}, so it cannot be "
                f"learned; remove the line, or train with this label "
                f"({counted(len(self), 'label')}: {short_list(list(self.names))})"
            )
        return self._ids[name]


def labels_of(records: Iterable[Record]) -> tuple[str, ...]:
    """Returns the label names of training records, sorted.

    Those of tags are `O`, then `B-TYPE` and `I-TYPE` of each entity type, even if one is unused.
    Integers are sorted by value.
    """
    names: set[str] = set()
    is_tags = False
    for record in records:
        if isinstance(record, TaggedWords):
            is_tags = True
            names |= {tag[2:] for tag in record.tags if tag != OUTSIDE}
        elif isinstance(record, LabeledText):
            names.add(record.label)
        elif isinstance(record, SpanText):
            names |= {span.label for span in record.spans}
    if is_tags:
        return (OUTSIDE, *(f"{edge}-{kind}" for kind in sorted(names) for edge in "BI"))
    return tuple(sorted(names, key=_order))


def _order(name: str) -> tuple[int, str]:
    try:
        return int(name), name
    except ValueError:
        return 0, name
