"""BLEU and chrF of translations by sacrebleu, with its signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from gpt2_jax.tasks.scores.bootstrap import DEFAULT, Bootstrap, Sums, ratio
from gpt2_jax.tasks.scores.label_counts import check_lengths
from gpt2_jax.tasks.scores.result import Scores

_ORDER = 4  # longest n-grams of BLEU


def translation_scores(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
    bootstrap: Bootstrap = DEFAULT,
) -> Scores:
    """Returns the BLEU and chrF of a corpus, from 0 to 100, each with its signature.

    Args:
      references: one or more reference translations of each sentence, detokenized.
      hypotheses: one translation per sentence, detokenized.
      tokenize: sacrebleu's name of BLEU's tokenization, such as `13a`, `intl` or `char`.
      lowercase: compares text in lower case.

    Raises:
      ValueError: if lengths differ, or a sentence has no reference.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_lengths(len(references), len(hypotheses), "sentences")
    if not references or not all(references):
        raise ValueError("each sentence needs a reference")
    bleu = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    chrf = CHRF(lowercase=lowercase)
    streams = list(zip_longest(*references))  # sacrebleu skips references that are None
    counts = {
        "bleu": _counts(bleu, hypotheses, streams),
        "chrf": _counts(chrf, hypotheses, streams),
    }
    return Scores(
        kind="translations",
        unit="sentences",
        n=len(hypotheses),
        values=bootstrap.intervals(counts, _values),
        definitions={"bleu": f"{bleu.get_signature()}", "chrf": f"{chrf.get_signature()}"},
        bootstrap=bootstrap,
        decimals=2,
    )


def _counts(metric: Any, hypotheses: Sequence[str], streams: list[Any]) -> np.ndarray:
    """Returns sacrebleu's sufficient statistics of each sentence, (N, K)."""
    # sacrebleu's own bootstrap uses these; it has no public function that returns them.
    return np.array(metric._extract_corpus_statistics(hypotheses, streams), np.int64)


def _values(sums: Sums) -> Mapping[str, np.ndarray]:
    return {"bleu": corpus_bleu(sums["bleu"]), "chrf": corpus_chrf(sums["chrf"])}


def corpus_bleu(sums_RK: np.ndarray) -> np.ndarray:
    """Returns BLEU (Papineni et al. 2002) as sacrebleu does, with smoothing `exp`.

    Args:
      sums_RK: lengths of hypotheses and references, numbers of correct n-grams for n = 1 .. 4, and
        of all n-grams of the hypotheses.
    """
    length, reference_length = sums_RK[:, 0], sums_RK[:, 1]
    correct, total = sums_RK[:, 2 : 2 + _ORDER], sums_RK[:, 2 + _ORDER :]
    # The k-th order without matches counts as if 1 / 2**k of an n-gram matched.
    halvings = (correct == 0).cumsum(-1)
    matched = np.where(correct == 0, 0.5**halvings, correct)
    precisions = ratio(matched, total)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(precisions).mean(-1))
    brevity = np.exp(np.minimum(0, 1 - ratio(reference_length, length)))
    return np.where((correct.sum(-1) > 0) & (length > 0), 100 * brevity * mean, 0.0)


def corpus_chrf(sums_RK: np.ndarray) -> np.ndarray:
    """Returns chrF2 (Popović 2015) as sacrebleu does: F2 of mean precision and recall.

    Args:
      sums_RK: numbers of character n-grams of the hypotheses, of the references and of both, for
        n = 1, then for n = 2, and so on.
    """
    found, gold, both = np.moveaxis(sums_RK.reshape(len(sums_RK), -1, 3), -1, 0)
    counted = (found > 0) & (gold > 0)
    n_orders = counted.sum(-1).astype(float)
    precision = ratio((ratio(both, found) * counted).sum(-1), n_orders)
    recall = ratio((ratio(both, gold) * counted).sum(-1), n_orders)
    return 100 * ratio(5 * precision * recall, 4 * precision + recall)
