"""BLEU and chrF against sacrebleu, for the corpus and for resamples of it."""

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.translation import corpus_bleu, corpus_chrf, translation_scores

NONE = Bootstrap(resamples=0)
WORDS = "a the dog cat runs sleeps quickly, on under red Äpfel house. and"


def corpus(n: int, noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    references, hypotheses = [], []
    for _ in range(n):
        words = rng.choice(WORDS.split(), rng.integers(1, 12)).tolist()
        references.append([" ".join(words)])
        kept = [w if rng.random() > noise else rng.choice(WORDS.split()) for w in words]
        hypotheses.append(" ".join(kept[: rng.integers(0, len(kept) + 1) or 99]))
    return references, hypotheses


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n", [1, 3, 50])
def test_scores_equal_those_of_sacrebleu(noise, n):
    references, hypotheses = corpus(n, noise, seed=n)
    got = translation_scores(references, hypotheses, bootstrap=NONE).metrics()
    stream = [[one for (one,) in references]]
    assert got["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, stream).score, abs=1e-9)
    assert got["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, stream).score, abs=1e-9)


@pytest.mark.parametrize("hypothesis", ["", "zzz", "the", "dog runs", "the dog runs on and on"])
def test_few_or_no_matches(hypothesis):
    """Orders without matches are smoothed; orders without n-grams make BLEU 0."""
    reference = "the dog runs on"
    got = translation_scores([[reference]], [hypothesis], bootstrap=NONE).metrics()
    want = sacrebleu.corpus_bleu([hypothesis], [[reference]]).score
    assert got["bleu"] == pytest.approx(want, abs=1e-9)
    assert got["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf([hypothesis], [[reference]]).score, abs=1e-9
    )


def test_several_references_some_missing():
    references = [["the dog runs", "a dog runs fast"], ["the red house."], ["cat", "a cat", "x"]]
    hypotheses = ["a dog runs", "the red house .", "a cat sleeps"]
    got = translation_scores(references, hypotheses, bootstrap=NONE).metrics()
    streams = [
        ["the dog runs", "the red house.", "cat"],
        ["a dog runs fast", None, "a cat"],
        [None, None, "x"],
    ]
    assert got["bleu"] == pytest.approx(BLEU().corpus_score(hypotheses, streams).score)
    assert got["chrf"] == pytest.approx(CHRF().corpus_score(hypotheses, streams).score)
    first = translation_scores([one[:1] for one in references], hypotheses, bootstrap=NONE)
    assert first.metrics()["bleu"] != pytest.approx(got["bleu"])


def test_signature_and_options():
    references, hypotheses = corpus(20, 0.2)
    scores = translation_scores(references, hypotheses, bootstrap=NONE)
    version = sacrebleu.__version__
    assert scores.definitions["bleu"] == (
        f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    )
    assert scores.definitions["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no")
    assert scores.definitions["bleu"] in scores.text()
    lower = translation_scores(references, [h.upper() for h in hypotheses], "char", True, NONE)
    assert "case:lc" in lower.definitions["bleu"] and "tok:char" in lower.definitions["bleu"]
    want = BLEU(tokenize="char", lowercase=True)
    stream = [[one for (one,) in references]]
    assert lower.metrics()["bleu"] == pytest.approx(want.corpus_score(hypotheses, stream).score)


def test_resamples_are_scored_as_corpora():
    """The score of a resample's sums is sacrebleu's score of its sentences."""
    references, hypotheses = corpus(30, 0.3)
    seen = []

    class Spy(Bootstrap):
        def intervals(self, counts, statistic, repeats_N=None):
            seen.append(counts)
            return super().intervals(counts, statistic, repeats_N)

    value = translation_scores(references, hypotheses, bootstrap=Spy(300)).values["bleu"]
    assert value.low < value.estimate < value.high
    chosen = np.random.default_rng(1).integers(0, 30, 30)
    some = [hypotheses[i] for i in chosen]
    stream = [[references[i][0] for i in chosen]]
    for name, ours, theirs in (
        ("bleu", corpus_bleu, sacrebleu.corpus_bleu),
        ("chrf", corpus_chrf, sacrebleu.corpus_chrf),
    ):
        (got,) = ours(seen[0][name][chosen].sum(0, keepdims=True))
        assert got == pytest.approx(theirs(some, stream).score, abs=1e-9)


def test_missing_references_are_refused():
    with pytest.raises(ValueError, match="needs a reference"):
        translation_scores([["a"], []], ["a", "b"])
    with pytest.raises(ValueError, match="1 gold sentences, but 2 predicted"):
        translation_scores([["a"]], ["a", "b"])
