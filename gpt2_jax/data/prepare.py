"""Prepares text from the command line: `python -m gpt2_jax.data.prepare --source=… --out=…`."""

from __future__ import annotations

import os
from pathlib import Path

from absl import app, flags

from gpt2_jax import cli
from gpt2_jax.config_check import check_split
from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.preparation import SHARD_TOKENS, prepare
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError

_SOURCE = flags.DEFINE_string("source", None, "text: see data.source in docs/config.md")
_VAL_SOURCE = flags.DEFINE_string("val_source", None, "validation text of its own")
_TOKENIZER = flags.DEFINE_string("tokenizer", "gpt2", "bytes, gpt2, or a tokenizer.json")
_OUT = flags.DEFINE_string("out", None, "folder to write")
_VAL_FRACTION = flags.DEFINE_float("val_fraction", 0.1, "share of documents for validation")
_SHARD_TOKENS = flags.DEFINE_integer(
    "shard_tokens", SHARD_TOKENS, "tokens in a shard", 1, 2**31 - 1
)
_PROCESSES = flags.DEFINE_integer("processes", os.cpu_count() or 1, "tokenizing processes", 1, 1024)


def main(argv: list[str]) -> None:
    """Prepares what the flags say and prints what was made."""
    del argv
    if _SOURCE.value is None or _OUT.value is None:
        raise UserError("give --source and --out, for example --source=stdlib --out=data/stdlib")
    check_split(_VAL_FRACTION.value, _VAL_SOURCE.value, "--val_fraction", "--val_source")
    plan = open_plan(_SOURCE.value, _VAL_SOURCE.value, _VAL_FRACTION.value)
    tokenizer = load_tokenizer(_TOKENIZER.value)
    out = Path(_OUT.value)
    manifest = prepare(plan, tokenizer, out, _SHARD_TOKENS.value, _PROCESSES.value)
    for name, split in manifest.splits.items():
        print(
            f"{name}: {split.tokens:,} tokens, {split.documents:,} documents, "
            f"{split.bytes:,} bytes, {len(split.shards)} shard(s)"
        )
    print(f"train on it with --config.data.source={out} --config.data.tokenizer={tokenizer.name}")


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
