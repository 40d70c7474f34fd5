"""Loss and perplexity of a run's checkpoint on any text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.shards import Corpus
from gpt2_jax.errors import UserError
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.restore import OpenedRun, open_run
from gpt2_jax.train.rundir import check_corpus

LOGITS_BYTES = 1 << 30  # of one batch; an imported model brings no batch size of its own


def evaluate_run(
    workdir: str, step: int | str | None, data: str | None, stride: int | None
) -> dict[str, Any]:
    """Returns what `eval.py` prints: counts, loss in nats, accuracy, perplexities, bits per byte.

    Perplexity is exp(nats / units), for tokens, and for the words and bytes of the text, which do
    not depend on the tokenizer.

    Args:
      step: of the checkpoint; None for the latest.
      data: as `data.source`; all of it is evaluated. None for the run's own validation text, of
        which the same tokens are taken as in training.
      stride: predictions scored in each window, at most `seq_len`; None for all of them.

    Raises:
      UserError: if there is no such run, checkpoint or text.
    """
    run = open_run(workdir, step)
    fields = run.config.data
    if stride is not None and not 1 <= stride <= fields.seq_len:
        raise UserError(f"--stride={stride} must be from 1 to the run's seq_len={fields.seq_len}")
    corpus = _corpus(run, workdir, data)
    train = run.config.train
    rows = _rows(run, train.batch_size // train.accumulation)
    evaluator = Evaluator(run.structure, run.mesh, fields.seq_len, rows)
    limit = train.eval_tokens if data is None and stride is None else None
    score = evaluator.score(run.params, run.step, corpus.val, limit, stride)
    bytes_per_token, words_per_token = corpus.bytes_per_token("val"), corpus.words_per_token("val")
    metrics = score.metrics(bytes_per_token)
    return {
        "step": run.step,
        "data": data or f"validation part of {fields.source}",
        "tokens": score.tokens,
        "stride": stride or fields.seq_len,
        "loss": metrics["val/loss"],
        "perplexity": _perplexity(score.loss, 1.0),
        "word_perplexity": _perplexity(score.loss, words_per_token),
        "byte_perplexity": _perplexity(score.loss, bytes_per_token),
        "accuracy": metrics["val/accuracy"],
        "bits_per_byte": metrics.get("val/bits_per_byte"),
    }


def _rows(run: OpenedRun, usual: int) -> int:
    """Returns how many windows to score at a time: as in training, or what the logits allow."""
    n_devices = run.mesh.devices.size
    logits_bytes = 4 * run.config.data.seq_len * run.config.model.vocab_size
    return max(n_devices, min(usual, LOGITS_BYTES // logits_bytes) // n_devices * n_devices)


def _perplexity(loss: float, units_per_token: float | None) -> float | None:
    if units_per_token is None:
        return None
    exponent = loss / units_per_token
    return math.exp(exponent) if exponent < 700 else math.inf  # a word of an untrained model


def _corpus(run: OpenedRun, workdir: str, data: str | None) -> Corpus:
    fields = run.config.data
    if data is None:
        corpus, _ = open_corpus(
            fields.source, fields.val_source, fields.tokenizer, fields.val_fraction
        )
        check_corpus(run.corpus, corpus, f"data.source={fields.source}", Path(workdir))
    else:
        corpus, _ = open_corpus(None, data, fields.tokenizer, fields.val_fraction)
    if len(corpus.val) < 2:
        raise UserError(f"--data={data} has fewer than two tokens")
    return corpus
