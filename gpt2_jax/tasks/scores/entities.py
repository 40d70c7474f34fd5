"""Scores of tagged entities (IOB2), by entity and by tag.

Entities are scored as in CoNLL-2000 and later (Tjong Kim Sang & De Meulder 2003): a predicted
entity is correct if a gold entity has the same type, start and end. Scores by tag count tokens
instead. Most tokens are outside of entities, so they are much higher and not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import DEFAULT, Bootstrap, Sums, ratio
from gpt2_jax.tasks.scores.label_counts import (
    AVERAGES,
    LabelCounts,
    averages,
    check_lengths,
    count_items,
    label_table,
)
from gpt2_jax.tasks.scores.result import Scores

Mode = Literal["strict", "lenient"]
OUTSIDE = "O"
DEFINITIONS = {
    "entity": "a predicted entity is correct if type, start and end equal a gold entity's; micro "
    "average over types unless macro or weighted",
    "strict": "an entity starts at B- and continues at I- of its type; other I- tags are ignored "
    "(seqeval's mode strict with IOB2)",
    "lenient": "I- after O or another type also starts an entity (conlleval, seqeval's default)",
    "token_accuracy": "share of tokens with the gold tag, O included; not an entity score",
    "tag_macro_f1": "mean F1 over tags, O included; not an entity score",
}


class Entity(NamedTuple):
    """A typed span of tokens; `end` is exclusive."""

    type: str
    start: int
    end: int


def entities(tags: Sequence[str], mode: Mode) -> list[Entity]:
    """Returns the entities of a sentence in order.

    Args:
      tags: `O`, `B-type` or `I-type`.
      mode: `strict` or `lenient`; they differ for an I- tag that does not continue an entity.

    Raises:
      ValueError: naming a tag that is none of these.
    """
    found: list[Entity] = []
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != OUTSIDE and not (prefix in ("B", "I") and kind):
            raise ValueError(f"tag {tag!r} is not O, B-type or I-type")
        previous = found[-1] if found else None
        if prefix == "I" and previous and (previous.type, previous.end) == (kind, i):
            found[-1] = previous._replace(end=i + 1)
        elif prefix == "B" or (prefix == "I" and mode == "lenient"):
            found.append(Entity(kind, i, i + 1))
    return found


def count_entities(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], mode: Mode
) -> LabelCounts:
    """Returns counts of entities per sentence and type."""
    items = lambda sentences: [
        [(one.type, (one.start, one.end)) for one in entities(tags, mode)] for tags in sentences
    ]
    return count_items(items(gold), items(predicted))


def count_tags(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> LabelCounts:
    """Returns counts of tokens per sentence and tag, `O` included."""
    items = lambda sentences: [[(tag, i) for i, tag in enumerate(tags)] for tags in sentences]
    return count_items(items(gold), items(predicted))


def entity_scores(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns scores by entity, strict and lenient, and by tag.

    Args:
      gold: IOB2 tags of each sentence's words.
      predicted: likewise, as many per sentence.

    Raises:
      ValueError: if lengths differ, or a tag is not `O`, `B-type` or `I-type`.
    """
    check_lengths(len(gold), len(predicted), "sentences")
    for true, found in zip(gold, predicted, strict=True):
        check_lengths(len(true), len(found), "tags in a sentence")
    strict = count_entities(gold, predicted, "strict")
    lenient = count_entities(gold, predicted, "lenient")
    tags = count_tags(gold, predicted)
    counts = {
        "strict": strict.counts_NL3,
        "lenient": lenient.counts_NL3,
        "tags": tags.counts_NL3,
    }
    return Scores(
        kind="entities",
        unit="sentences",
        n=len(gold),
        values=bootstrap.intervals(counts, _values),
        definitions=DEFINITIONS,
        bootstrap=bootstrap,
        tables=(
            label_table("entities by type, strict", "type", strict),
            label_table("entities by type, lenient", "type", lenient),
            label_table("tokens by tag (not entities)", "tag", tags),
        ),
    )


def _values(sums: Sums) -> Mapping[str, np.ndarray]:
    values = {}
    for mode in ("strict", "lenient"):
        average = averages(sums[mode])
        precision, recall, f1 = np.moveaxis(average["micro"], -1, 0)
        values[f"entity_f1_{mode}"] = f1
        values[f"entity_precision_{mode}"] = precision
        values[f"entity_recall_{mode}"] = recall
        for name in AVERAGES[1:]:
            values[f"entity_{name}_f1_{mode}"] = average[name][..., 2]
    correct, _, gold = np.moveaxis(sums["tags"].sum(-2), -1, 0)
    values["token_accuracy"] = ratio(correct, gold)
    values["tag_macro_f1"] = averages(sums["tags"])["macro"][..., 2]
    return values
