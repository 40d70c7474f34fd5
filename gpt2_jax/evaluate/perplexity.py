"""Loss and perplexity of a run's checkpoint on any text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.dataset import Dataset, single
from gpt2_jax.errors import UserError
from gpt2_jax.train.distributed.mesh import FSDP, n_row_devices
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.storage.open_run import OpenedRun, open_run, open_run_data
from gpt2_jax.tuning.int8 import in_int8, n_bytes

MAX_LOGITS_BYTES = 1 << 30  # per batch; an imported model has no batch size of its own


def evaluate_run(
    workdir: str,
    step: int | str | None,
    data: str | None,
    stride: int | None,
    int8: bool = False,
) -> dict[str, Any]:
    """Returns counts, loss in nats, accuracy, perplexities and bits per byte.

    Perplexity is exp(nats / n), with n in tokens, or in words or bytes of the text, which do not
    depend on the tokenizer. `notes` says why a value is None, unless the corpus lacks the count.

    Args:
      step: as in `CheckpointRef`.
      data: a text as in `data.source`, evaluated in full; None for the run's validation text, on
        the same tokens as in training.
      stride: number of predictions scored per window, at most `seq_len`; None for `seq_len`.
      int8: whether to evaluate the model with weights in 8 bits as well, and return the difference.

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
    evaluator = Evaluator(run.model_def, run.mesh, fields.seq_len, rows)
    limit = train.eval_tokens if data is None and stride is None else None
    score = evaluator.score_dataset(run.params, run.step, corpus, limit, stride)
    bytes_per_token, words_per_token = corpus.bytes_per_token("val"), corpus.words_per_token("val")
    metrics = score.metrics()
    units = {
        "perplexity": 1.0,
        "word_perplexity": words_per_token,
        "byte_perplexity": bytes_per_token,
    }
    nats = {name: score.loss / per_token for name, per_token in units.items() if per_token}
    return {
        "step": run.step,
        "data": data or f"validation part of {fields.source}",
        "tokens": score.tokens,
        "stride": stride or fields.seq_len,
        "loss": metrics["val/loss"],
        **{name: _exp(nats[name]) if name in nats else None for name in units},
        "accuracy": metrics["val/accuracy"],
        "bits_per_byte": metrics.get("val/bits_per_byte"),
        **(_in_int8(run, corpus, rows, limit, stride, score.loss) if int8 else {}),
        **({"losses": losses} if (losses := score.losses()) else {}),
        "notes": {name: _why_none(x) for name, x in nats.items() if _exp(x) is None},
    }


def _in_int8(
    run: OpenedRun, corpus: Dataset, rows: int, limit: int | None, stride: int | None, loss: float
) -> dict[str, Any]:
    """Returns the loss with weights in 8 bits, compared with `loss`, and the bytes of both."""
    check_whole(run)
    model, params = in_int8(run.model_def, run.params)
    evaluator = Evaluator(model, run.mesh, run.config.data.seq_len, rows)
    score = evaluator.score_dataset(params, run.step, corpus, limit, stride)
    return {
        "int8_loss": score.loss,
        "int8_loss_increase": score.loss - loss,
        "weight_bytes": n_bytes(run.params),
        "int8_weight_bytes": n_bytes(params),
    }


def check_whole(run: OpenedRun) -> None:
    """Refuses weights that are divided among devices, which cannot be stored in 8 bits.

    Raises:
      UserError: if they are.
    """
    if run.mesh.shape[FSDP] > 1:
        raise UserError("--int8: the weights do not fit in the memory of one device")


MEANINGS = {
    "loss": "nats per token",
    "int8_loss": "with weights in 8 bits",
    "int8_loss_increase": "nats per token",
    "weight_bytes": "in float32",
    "int8_weight_bytes": "matrices and embeddings in 8 bits, the rest in float32",
    "perplexity": "per token: exp(loss)",
    "word_perplexity": "per word: exp(nats per word); huge for an untrained model",
    "byte_perplexity": "per byte of text",
    "accuracy": "fraction of tokens predicted as the most likely one",
}


def as_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yields one line per result of `evaluate_run`, with its unit."""
    losses = {f"loss of {name}": loss for name, loss in result.get("losses", {}).items()}
    for name, value in (result | losses).items():
        if name in ("notes", "losses") or (value is None and name not in result["notes"]):
            continue
        if name == "byte_perplexity" and _is_about(value, result["perplexity"]):
            continue  # tokens are bytes: the values differ only by the ends of documents
        shown = f"{value:,.6g}" if isinstance(value, float) else str(value)
        meaning = MEANINGS.get(name, "")
        if value is None:
            shown, meaning = "none", result["notes"][name]
        yield f"{name:<22} {shown:<12} {meaning}".rstrip()


def _rows(run: OpenedRun, default: int) -> int:
    """Returns the number of windows per batch: as in training, or fewer if the logits are large."""
    n_devices = n_row_devices(run.mesh)
    logits_bytes = 4 * run.config.data.seq_len * run.config.model.vocab_size
    return max(n_devices, min(default, MAX_LOGITS_BYTES // logits_bytes) // n_devices * n_devices)


def _is_about(value: float | None, other: float | None) -> bool:
    return value is not None and other is not None and math.isclose(value, other, rel_tol=0.01)


def _exp(nats: float) -> float | None:
    """Returns exp(nats), or None if it is NaN or overflows (per word, for an untrained model)."""
    return math.exp(nats) if nats < 700 else None


def _why_none(nats: float) -> str:
    return f"exp({nats:.4g} nats) is beyond the largest float" if nats >= 700 else "not a number"


def _corpus(run: OpenedRun, workdir: str, data: str | None) -> Dataset:
    if data is None:
        corpus = open_run_data(run, workdir)
    else:
        fields = run.config.data
        separator = fields.document_separator
        text, _ = open_corpus(None, data, fields.tokenizer, fields.val_fraction, separator)
        corpus = single(text)
    if any(len(part.corpus.val) < 2 for part in corpus.parts):
        raise UserError(f"--data={data} has fewer than two tokens; give a longer text")
    return corpus
