"""Entity reports compared with seqeval, and ROUGE with Google's `rouge_score`."""

import random

import pytest

pytest.importorskip("seqeval")
pytest.importorskip("rouge_score")

from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from gpt2_jax.tasks.scores.bootstrap import Bootstrap
from gpt2_jax.tasks.scores.entities import entity_scores
from gpt2_jax.tasks.scores.rouge import rouge_scores
from tests.tasks.scores.test_entities import noisy_copy, random_tags

pytestmark = pytest.mark.peers
NONE = Bootstrap(resamples=0)


@pytest.mark.filterwarnings("ignore")  # seqeval warns of types without predictions
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("mode", "options"), [("strict", {"mode": "strict", "scheme": IOB2}), ("lenient", {})]
)
def test_entity_report_equals_that_of_seqeval(seed, mode, options):
    rng = random.Random(seed)
    gold = random_tags(rng, 40)
    predicted = noisy_copy(rng, gold)
    want = classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
    scores = entity_scores(gold, predicted, NONE)
    (table,) = (one for one in scores.tables if mode in one.title)
    rows = {row[0].strip("()"): row[1:] for row in table.rows}
    assert len(rows) == len(want) == 6
    for name, row in rows.items():
        theirs = want[name if name in want else f"{name} avg"]
        names = ("precision", "recall", "f1-score", "support")
        assert row[:4] == pytest.approx([theirs[one] for one in names], abs=1e-12)
    assert scores.metrics()[f"entity_f1_{mode}"] == rows["micro"][2]


TEXTS = ["The cat's 2 dogs — don't run.", "", "Käse und Brot", "a b a b c", "A, b; c: d!"]


@pytest.mark.parametrize("n_references", [1, 2])
def test_rouge_equals_rouge_score(n_references):
    rng = random.Random(n_references)
    words = " ".join(TEXTS).split()
    text = lambda: " ".join(rng.choices(words, k=rng.randint(1, 30)))
    predictions = [*TEXTS, *(text() for _ in range(100))]
    references = [[text() for _ in range(n_references)] for _ in predictions]
    references[3] = ["a b c b a", "c b a"][:n_references]
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names, use_stemmer=False)
    for reference, prediction in zip(references, predictions, strict=True):
        want = scorer.score_multi(reference, prediction)
        (table,) = rouge_scores([reference], [prediction], bootstrap=NONE).tables
        for name, precision, recall, f1 in table.rows:
            theirs = want[name]
            assert f1 == pytest.approx(theirs.fmeasure, abs=1e-12)
            if n_references == 1:
                assert (precision, recall) == pytest.approx((theirs.precision, theirs.recall))
