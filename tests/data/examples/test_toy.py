"""Generated tasks follow their rules and are the same in every process."""

import hashlib
from collections import Counter

import pytest

from gpt2_jax.data.examples.sources import RecordSource
from gpt2_jax.errors import UserError


def records(task, spec):
    return list(RecordSource(task, spec).records(Counter()))


def test_reverse():
    for pair in records("translate", "toy:reverse"):
        assert pair.references[0].split() == pair.source.split()[::-1]


def test_language_is_a_function_of_the_source():
    found = {pair.source: pair.references[0] for pair in records("translate", "toy:language")}
    assert all(found[p.source] == p.references[0] for p in records("translate", "toy:language"))
    assert found["three teachers follow many children ."] == "tri korini mul paloni sekes ."
    assert all(
        target.split()[-2].endswith("es") == (source.split()[0] != "the")
        for source, target in found.items()
    )


def test_tags_depend_on_the_context():
    found = records("tag", "toy:tags")
    types = {
        tag for r in found for word, tag in zip(r.words, r.tags, strict=True) if word == "Paris"
    }
    assert types == {"B-PER", "B-LOC", "B-ORG"}
    assert any("I-ORG" in r.tags for r in found)


@pytest.mark.parametrize(
    "task, name", [("translate", "toy:reverse"), ("translate", "toy:language"), ("tag", "toy:tags")]
)
def test_splits_share_no_sentence(task, name):
    groups = [{r.group for r in records(task, f"{name}#{s}")} for s in ("train", "val", "test")]
    assert all(len(group) >= 20 for group in groups)
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_records_have_fixed_literal_values():
    text = "".join(p.source + p.references[0] for p in records("translate", "toy:language"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PINNED


PINNED = "6a200c2cda8f243f"


@pytest.mark.parametrize(
    "task, spec, message",
    [
        ("translate", "toy:revers", "unknown source toy:revers; did you mean 'toy:reverse'?"),
        ("translate", "toy:reverse#tets", "has no split tets; did you mean 'test'?"),
        ("tag", "toy:reverse", "source toy:reverse is for task.name=translate, not tag"),
    ],
)
def test_unknown_sources_are_one_line_errors(task, spec, message):
    with pytest.raises(UserError) as found:
        records(task, spec)
    assert message in str(found.value)
