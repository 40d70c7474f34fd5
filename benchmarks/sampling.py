"""Times greedy decoding, ours and transformers', alternating with the same weights and machine.

    python benchmarks/sampling.py [--workdir=RUN] [--new_tokens=128] [--pairs=5]

Without a run, the model is GPT-2 124M with random weights. Needs the extra `peers`. Both use a
key/value cache and compute in float32; the times exclude compilation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from gpt2_jax.config import Config, replace, resolve, to_json
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import GREEDY
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run

PROMPT_TOKENS = 32


def random_run(folder: Path) -> str:
    config = resolve(replace(Config(), {"data.tokenizer": "gpt2"}), 50257)
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    model = define_model(config.model, config.placement)
    save_params(folder / "weights", jax.jit(model.init)(jax.random.key(0)))
    return str(folder)


def seconds(f: Callable[[], object]) -> float:
    started = time.perf_counter()
    f()
    return time.perf_counter() - started


def compare(
    ours: Generator, theirs: transformers.GPT2LMHeadModel, batch: int, args: argparse.Namespace
) -> None:
    random = np.random.default_rng(0)
    prompts = random.integers(0, theirs.config.vocab_size, (batch, PROMPT_TOKENS))
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)

    def our_text() -> list[list[int]]:
        return ours.generate(prompts.tolist(), args.new_tokens, GREEDY)

    def their_text() -> torch.Tensor:
        return theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=args.new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    same = np.mean(np.array(our_text()) == their_text()[:, PROMPT_TOKENS:].numpy())
    pairs = [(seconds(our_text), seconds(their_text)) for _ in range(args.pairs)]
    tokens = batch * args.new_tokens
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"{batch:>2} prompts: gpt2_jax {tokens / mine:,.0f} tokens/s, transformers "
        f"{tokens / other:,.0f} tokens/s, {ratio:.2f} times as fast ({same:.1%} of ids the same)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", help="a run; default: GPT-2 124M with random weights")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    jax.config.update("jax_num_cpu_devices", 1)  # as open_run does, but random_run uses jax first
    with tempfile.TemporaryDirectory() as folder:
        workdir = args.workdir or random_run(Path(folder) / "run")
        run = open_run(workdir, devices=1)
        export_model(workdir, f"{folder}/theirs", step=run.step)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(f"{folder}/theirs").eval()
    ours = Generator(run.model_def, run.params, run.step, run.config.data.seq_len)
    window = run.config.data.seq_len
    if PROMPT_TOKENS + args.new_tokens > window:
        parser.error(f"--new_tokens must be at most {window - PROMPT_TOKENS}")
    for batch in (1, 16):
        compare(ours, theirs, batch, args)


if __name__ == "__main__":
    main()
