"""Mixtures: their notation, which source each row comes from, and the dataset they open."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.dataset import Dataset, Part, open_dataset
from gpt2_jax.data.mixture import MixtureSampler, parse_mixture, source_names
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.data.shards import Tokens
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError, without_credentials
from tests.tools import make_text

WEIGHTS = st.lists(st.integers(1, 1000), min_size=2, max_size=5)


def mixed(weights, batch_size=8, seed=0, tokens=500):
    """Returns a mixture of sources whose ids say which source they are of, and their samplers."""
    samplers = [
        Sampler(Tokens([np.arange(tokens, dtype=np.uint32) + 1000 * i]), 10, batch_size, seed)
        for i in range(len(weights))
    ]
    shares = [Fraction(w, sum(weights)) for w in weights]
    return MixtureSampler(samplers, shares, batch_size, seed), samplers


def sources(sampler, step, rows=slice(None)):
    return (sampler.batch(step, rows).tokens_BT1[:, 0] // 1000).tolist()


@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_every_prefix_has_nearly_the_exact_shares_and_ranks_are_consecutive(weights, seed, batch):
    sampler, _ = mixed(weights, batch, seed)
    counts = [0] * len(weights)
    for position in range(300):
        source, rank = sampler.source_of(position)
        assert rank == counts[source]
        counts[source] += 1
        for weight, n in zip(weights, counts, strict=True):
            assert abs(n - (position + 1) * weight / sum(weights)) < len(weights)


@settings(deadline=None, max_examples=20)
@given(WEIGHTS, st.integers(0, 2**40))
def test_seeking_far_is_exact(weights, position):
    """Consecutive rows after a jump continue each source's order, without counting up to it."""
    sampler, _ = mixed(weights)
    seen = {}
    for at in range(position, position + 20):
        source, rank = sampler.source_of(at)
        assert rank == seen.get(source, rank - 1) + 1
        assert abs(rank - at * weights[source] / sum(weights)) < len(weights) + 1
        seen[source] = rank


def test_rows_of_a_source_are_those_of_a_run_on_it_alone():
    sampler, alone = mixed([7, 3, 2])
    rows = [sampler.batch(step).tokens_BT1 for step in range(30)]
    of_source = [[], [], []]
    for row in np.concatenate(rows):
        of_source[row[0] // 1000].append(row)
    for i, found in enumerate(of_source):
        expected = np.concatenate([alone[i].batch(step).tokens_BT1 for step in range(30)])
        assert len(found) > 30
        np.testing.assert_array_equal(np.stack(found), expected[: len(found)])


def test_batches_depend_only_on_seed_and_step():
    sampler, again, other = mixed([7, 3])[0], mixed([7, 3])[0], mixed([7, 3], seed=1)[0]
    whole = [sampler.batch(step).tokens_BT1 for step in range(40)]
    for step in (33, 2, 17):
        np.testing.assert_array_equal(again.batch(step).tokens_BT1, whole[step])
    assert any((other.batch(s).tokens_BT1 != whole[s]).any() for s in range(3))
    assert {tuple(sources(mixed([7, 3], seed=s)[0], 0)) for s in range(20)} != {
        tuple(sources(sampler, 0))
    }


def test_processes_read_their_own_rows_of_one_batch():
    sampler, _ = mixed([5, 2, 1])
    for step in (0, 5):
        parts = [sampler.batch(step, slice(i, i + 2)).tokens_BT1 for i in range(0, 8, 2)]
        np.testing.assert_array_equal(np.concatenate(parts), sampler.batch(step).tokens_BT1)


def test_order_has_fixed_literal_values():
    """A change of the order would change every run on a mixture."""
    sampler, _ = mixed([7, 3], seed=42)
    assert [sources(sampler, step) for step in (0, 1, 10**12)] == PINNED


PINNED = [[0, 1, 0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("spec", "shares"),
    [
        ("mixture:a=0.7,b=0.3", {"a": Fraction(7, 10), "b": Fraction(3, 10)}),
        (
            "mixture: a/x=1 , hf:b@train=.5,c=2.50",
            {"a/x": Fraction(1, 4), "hf:b@train": Fraction(1, 8), "c": Fraction(5, 8)},
        ),
        ("mixture:https://h/a?x=1=2,b=6", {"https://h/a?x=1": Fraction(1, 4), "b": Fraction(3, 4)}),
    ],
)
def test_notation(spec, shares):
    found = parse_mixture(spec)
    assert sum(found.values()) == 1
    assert found == shares


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mixture:a=0.7,b", "'b' in the mixture has no weight"),
        ("mixture:a=0.7,b=", "the weight '' of b must be a positive"),
        ("mixture:a=0.7,b=-1", "the weight '-1' of b must be a positive"),
        ("mixture:a=0.7,b=0.0", "the weight '0.0' of b must be a positive"),
        ("mixture:a=0.7,b=nan", "the weight 'nan' of b must be a positive"),
        ("mixture:a=0.7,b=1e9", "the weight '1e9' of b must be a positive"),
        ("mixture:a=1,b=2,a=3", "lists a twice"),
        ("mixture:a=1", "mixes only one source; set data.source=a"),
        ("mixture:", "has no weight"),
    ],
)
def test_invalid_notation_is_a_one_line_error(spec, message):
    with pytest.raises(UserError, match=message) as error:
        parse_mixture(spec)
    assert "\n" not in str(error.value)


def test_a_source_after_a_url_is_not_a_password():
    spec = "mixture:https://host/a.jsonl=0.5,hf:name@train=0.5"
    assert without_credentials(spec) == spec
    secret = "mixture:https://bob:pw@host/a.jsonl=0.5,b=0.5"
    assert "pw" not in without_credentials(secret)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["prepared/web", "prepared/code/"], ["web", "code"]),
        (["a/web", "b/web"], ["a_web", "b_web"]),
        (["data/web/*.jsonl.zst", "code.jsonl"], ["web", "code"]),
        (["hf:org/name@train", "s3://bucket/books/part-*.parquet"], ["train", "books"]),
        (["a.txt", "a.md"], ["a_1", "a_2"]),
        (["***", "shakespeare"], ["source", "shakespeare"]),
    ],
)
def test_names_are_short_and_distinct(given, names):
    assert source_names(given) == names


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Prepared folders `web` and `code`, with byte ids, and `other`, with GPT-2's."""
    tmp = tmp_path_factory.mktemp("mixture")
    for i, (name, tokenizer) in enumerate([("web", "bytes"), ("code", "bytes"), ("other", "gpt2")]):
        (tmp / f"{name}.txt").write_text(make_text(6000 - 2000 * i, seed=i))
        plan = open_plan(str(tmp / f"{name}.txt"), None, 0.1)
        prepare(plan, load_tokenizer(tokenizer), tmp / name)
    return tmp


def test_opens_prepared_folders_and_any_text(folders):
    spec = f"mixture:{folders}/web=3,{folders}/code.txt=1"
    data, tokenizer = open_dataset(spec, None, "bytes", 0.1)
    assert tokenizer.name == "bytes" and [p.name for p in data.parts] == ["web", "code"]
    assert [p.share for p in data.parts] == [Fraction(3, 4), Fraction(1, 4)]
    assert data.n_tokens("train") == 5400 + 3600 and data.n_tokens("val") == 600 + 400
    assert data.bytes_per_token("val") == 1.0
    assert set(sources_by_length(data)) == {"web", "code"}


def sources_by_length(data):
    """Returns the names of the corpora that 10 batches come from."""
    sampler, texts = data.sampler(10, 8, 0), {}
    for part in data.parts:
        train = part.corpus.train
        texts[part.name] = bytes(train.window(0, len(train)).astype(np.uint8))
    for step in range(10):
        for row in sampler.batch(step).tokens_BT1:
            yield next(name for name, text in texts.items() if bytes(row.astype(np.uint8)) in text)


def test_hash_depends_on_content_and_shares_but_not_on_paths(folders, tmp_path):
    open_ = lambda spec: open_dataset(f"mixture:{spec}", None, "bytes", 0.1)[0]
    first = open_(f"{folders}/web=3,{folders}/code=1")
    (tmp_path / "moved").symlink_to(folders / "web")
    moved = open_(f"{tmp_path}/moved=6,{folders}/code=2")
    assert first.content_hash() == moved.content_hash()
    others = [f"{folders}/web=2,{folders}/code=1", f"{folders}/code=3,{folders}/web=1"]
    hashes = [x.content_hash() for x in (first, *map(open_, others))]
    assert len(set(hashes)) == 3
    manifests = {part.name: part.corpus.manifest.corpus_hash() for part in first.parts}
    assert first.source_hashes() == manifests
    alone, _ = open_dataset(f"{folders}/web", None, "bytes", 0.1)
    assert alone.content_hash() == manifests["web"] and alone.source_hashes() == {}


def test_different_tokenizers_are_refused_naming_both(folders):
    spec = f"mixture:{folders}/web=1,{folders}/other=1"
    with pytest.raises(UserError) as error:
        open_dataset(spec, None, "bytes", 0.1)
    message = str(error.value)
    assert f"{folders}/web, prepared with data.tokenizer=bytes" in message
    assert f"{folders}/other, prepared with gpt2" in message


@pytest.mark.parametrize(
    ("spec", "val_source", "message"),
    [
        ("mixture:{0}/web=1,{0}/absent=1", None, "absent matches no file"),
        ("mixture:{0}/web=1,{0}/code=1", "{0}/other.txt", "cannot be used with a mixture"),
    ],
)
def test_wrong_sources_are_refused(folders, spec, val_source, message):
    with pytest.raises(UserError, match=message):
        open_dataset(spec.format(folders), val_source and val_source.format(folders), "bytes", 0.1)


def test_a_source_with_too_little_text_is_named(folders):
    data, _ = open_dataset(f"mixture:{folders}/web=1,{folders}/code=1", None, "bytes", 0.1)
    short = Dataset((data.parts[0], Part("code", Fraction(1, 2), data.parts[1].corpus)))
    with pytest.raises(UserError, match="code: the training text has 3,600 tokens"):
        short.sampler(2000, 2, 0)


def test_prepare_refuses_a_mixture():
    with pytest.raises(UserError, match=r"only data\.source of a run can be"):
        open_plan("mixture:a=1,b=1", None, 0.1)
