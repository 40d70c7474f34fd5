"""Compares an imported GPT-2 124M with reference implementations.

The references are the parameter count, loss and greedy text of transformers' GPT2LMHeadModel, the
strided WikiText-2 perplexity of Hugging Face's guide, and LAMBADA of lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.extra import load_harness
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import GREEDY
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.loss import mean_loss
from gpt2_jax.train.storage.open_run import OpenedRun, open_run

PARAMETERS = 124_439_808
LOSS_IDS, LOSS = [50256, 15496, 995, 0], 5.3318558
PROMPT = [464, 3290]
CONTINUATION = [
    *(373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688),
    *(27262, 13, 198, 198, 464, 3290),
]
WIKITEXT_TOKENS, WIKITEXT_PERPLEXITY, WIKITEXT_STRIDE = 287_644, 29.94, 512
LAMBADA_ACCURACY = 0.3256


@dataclass(frozen=True)
class Finding:
    """A result, compared with its reference value."""

    name: str
    expected: str
    found: str
    agrees: bool

    def __str__(self) -> str:
        verdict = "as expected" if self.agrees else f"DIFFERS from {self.expected}"
        return f"{self.name:<34} {self.found:<22} {verdict}"


def check_gpt2(workdir: str, task_data: str | None) -> Iterator[Finding]:
    """Yields the results for a run, fast ones first.

    Args:
      workdir: run directory of the imported checkpoint.
      task_data: folder with wikitext2_raw/ and lambada/; None skips these two.

    Raises:
      UserError: if the model has a smaller vocabulary than GPT-2.
    """
    harness = None if task_data is None else load_harness()
    run = open_run(workdir, devices=1)
    if run.config.model.vocab_size < load_tokenizer("gpt2").size:
        raise UserError(f"{workdir} does not have GPT-2's vocabulary of 50257 tokens")
    count = run.model_def.n_params()
    yield Finding("parameters", f"{PARAMETERS:,}", f"{count:,}", count == PARAMETERS)
    loss = float(mean_loss(run.params, run.model_def, Batch(jnp.array([LOSS_IDS])), None, run.step))
    yield _close("mean loss of 50256 15496 995 0", LOSS, loss, 1e-4, 7)
    generator = Generator(run.model_def, run.params, run.step, run.config.data.seq_len)
    (text,) = generator.generate([PROMPT], len(CONTINUATION), GREEDY)
    shown = " ".join(map(str, text[:4])) + " …"
    yield Finding("greedy text after 464 3290", "373 1043 287 257 …", shown, text == CONTINUATION)
    if task_data is None or harness is None:
        return
    perplexity = wikitext_perplexity(run, Path(task_data))
    yield _close("WikiText-2 perplexity, stride 512", WIKITEXT_PERPLEXITY, perplexity, 0.01, 2)
    results = harness.evaluate_tasks(workdir, ["lambada_openai"], task_data=task_data)
    accuracy = results["results"]["lambada_openai"]["acc,none"]
    yield _close("LAMBADA accuracy", LAMBADA_ACCURACY, accuracy, 2e-4, 4)


def wikitext_text(raw: str) -> str:
    """Joins the rows of WikiText with blank lines, as in Hugging Face's perplexity guide."""
    rows = [f"{line}\n" if line.strip() else "" for line in raw.split("\n")]
    return "\n\n".join(rows[:-1])


def wikitext_perplexity(run: OpenedRun, task_data: Path) -> float:
    """Returns the perplexity per token of the raw WikiText-2 test set, with stride 512.

    Raises:
      UserError: if the file is missing or has a different number of tokens.
    """
    found = sorted(task_data.glob("wikitext2_raw/*.raw"))
    if not found:
        raise UserError(f"--task_data={task_data} has no wikitext2_raw/*.raw")
    (ids,) = load_tokenizer("gpt2").encode([wikitext_text(found[0].read_text(encoding="utf-8"))])
    if len(ids) != WIKITEXT_TOKENS:
        raise UserError(
            f"{found[0]} has {len(ids):,} tokens, but the raw WikiText-2 test set has "
            f"{WIKITEXT_TOKENS:,}"
        )
    seq_len = run.config.model.n_positions
    evaluator = Evaluator(run.model_def, run.mesh, seq_len, batch_size=2)
    score = evaluator.score(run.params, run.step, Tokens([np.asarray(ids)]), stride=WIKITEXT_STRIDE)
    return math.exp(score.loss)


def _close(name: str, expected: float, found: float, tolerance: float, digits: int) -> Finding:
    agrees = abs(found - expected) <= tolerance
    return Finding(name, f"{expected:.{digits}f}", f"{found:.{digits}f}", agrees)
