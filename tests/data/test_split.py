"""Which documents are held out, with and without identical documents."""

import json

import pytest

from gpt2_jax.data import text as texts
from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.shards import open_prepared
from gpt2_jax.errors import UserError
from tests.data.prepared import BYTES, split_documents, write_documents
from tests.tools import make_text

SMALL = ["document 6", "document 11", "document 18"]
LARGE = [f"document {i}" for i in (6, 11, 18, 39, 72, 86, 87, 88)]


def plan_of(tmp_path, docs, fraction=0.1):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": doc}) + "\n" for doc in docs))
    return open_plan(str(path), None, fraction)


def sides(plan):
    out = {"train": [], "val": []}
    for side, piece in plan.pieces():
        out[side].append(piece.text)
    return out["train"], out["val"]


def test_split_is_stable_across_versions(tmp_path):
    """Literal values: a changed rule would move documents between the splits of old runs."""
    docs = [f"document {i}" for i in range(30)]
    assert sides(plan_of(tmp_path, docs))[1] == SMALL
    docs = [f"document {i}" for i in range(400)]
    assert sides(plan_of(tmp_path, docs))[1][:8] == LARGE


@pytest.mark.parametrize("repeated", ["the same", "same", "again", "x", "y", "z"])
@pytest.mark.parametrize(("n", "equal"), [(30, 20), (30, 4), (1000, 700), (1000, 30)])
def test_identical_documents_do_not_distort_the_fraction(tmp_path, repeated, n, equal):
    docs = [f"document {i}" for i in range(n - equal)] + [repeated] * equal
    docs = docs[::7] + [doc for i, doc in enumerate(docs) if i % 7]
    train, val = sides(plan_of(tmp_path, docs))
    assert sorted(train + val) == sorted(docs) and not set(train) & set(val)
    assert 0.02 * n <= len(val) <= 0.15 * n


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("groups", [[1, 1], [2, 2], [15, 15], [1, 29]])
def test_neither_split_is_empty_if_two_documents_differ(tmp_path, groups, fraction):
    docs = [f"document {i}" for i, n in enumerate(groups) for _ in range(n)]
    train, val = sides(plan_of(tmp_path, docs, fraction))
    assert train and val and not set(train) & set(val)


def test_deviation_from_val_fraction_is_reported(tmp_path, capsys):
    prepare(plan_of(tmp_path, ["a"] * 15 + ["b"] * 15), BYTES, tmp_path / "out")
    assert "holding out 15 of 30 documents" in capsys.readouterr().err
    prepare(plan_of(tmp_path, [str(i) for i in range(30)]), BYTES, tmp_path / "plain")
    assert "holding out" not in capsys.readouterr().err


def test_identical_documents_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match=r"30 documents of .*a\.jsonl are identical"):
        sides(plan_of(tmp_path, ["the same"] * 30))


def test_empty_validation_split_names_val_fraction(tmp_path):
    docs = ["the same"] * 250
    with pytest.raises(UserError, match=r"data\.val_fraction=0.1 holds out none of the 250"):
        prepare(plan_of(tmp_path, docs), BYTES, tmp_path / "out")


def test_text_too_short_to_split_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt is too short"):
        sides(open_plan(f"{tmp_path}/a.txt", None, 0.1))


def test_single_document_is_split_by_characters(tmp_path):
    text = make_text(1000).replace("norm", "nörm")
    (tmp_path / "a.txt").write_text(text)
    prepare(open_plan(str(tmp_path / "a.txt"), None, 0.1), BYTES, tmp_path / "out")
    corpus = open_prepared(tmp_path / "out")
    assert split_documents(corpus.train) == [text[:900]]
    assert split_documents(corpus.val) == [text[900:]]


def test_single_document_in_pieces_is_split_at_the_same_character(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE_CHARS", 64)
    text = make_text(1000)
    (tmp_path / "a.txt").write_text(text)
    prepare(open_plan(str(tmp_path / "a.txt"), None, 0.1), BYTES, tmp_path / "out")
    corpus = open_prepared(tmp_path / "out")
    assert split_documents(corpus.train) == [text[:900]]
    assert split_documents(corpus.val) == [text[900:]]


@pytest.mark.parametrize("n", [2, 3, 15])
def test_few_documents_leave_neither_split_empty(tmp_path, n):
    write_documents(tmp_path / "a.jsonl", n)
    manifest = prepare(open_plan(str(tmp_path / "a.jsonl"), None, 0.1), BYTES, tmp_path / "out")
    assert manifest.splits["val"].documents == max(1, round(n / 10))
    assert manifest.splits["train"].documents == n - max(1, round(n / 10))
