r"""Tokenizes text into a prepared folder, or verifies one.

gpt2-jax prepare --source=… --out=DIR [--tokenizer=…] [--val_fraction=…]
gpt2-jax prepare --verify --out=DIR
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.manifest import Manifest
from gpt2_jax.data.preparation import SHARD_TOKENS, prepare
from gpt2_jax.data.shards import MAX_SHARD_TOKENS, verify_prepared
from gpt2_jax.data.split import check_split
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError, counted

_SOURCE = flags.DEFINE_string("source", None, "text: a value of data.source")
_VAL_SOURCE = flags.DEFINE_string("val_source", None, "separate validation text")
_TOKENIZER = flags.DEFINE_string("tokenizer", "gpt2", "bytes, gpt2, or a tokenizer.json")
_OUT = flags.DEFINE_string("out", None, "folder to write, or to verify with --verify")
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction", 0.1, "fraction of documents for validation", lower_bound=0, upper_bound=1
)
_SEPARATOR = flags.DEFINE_string(
    "document_separator", None, "split documents at this text, such as <|endoftext|>"
)
_SHARD_TOKENS = flags.DEFINE_integer(
    "shard_tokens", SHARD_TOKENS, "tokens per shard", lower_bound=1, upper_bound=MAX_SHARD_TOKENS
)
_PROCESSES = flags.DEFINE_integer(
    "processes", os.cpu_count() or 1, "tokenizing processes", lower_bound=1, upper_bound=1024
)
_VERIFY = flags.DEFINE_bool("verify", False, "check the hash of every shard in --out")


def main(argv: list[str]) -> None:
    """Writes or verifies the prepared folder, and prints its counts."""
    del argv
    if _OUT.value and _VERIFY.value:
        if _SOURCE.value or _VAL_SOURCE.value:
            raise UserError("--verify reads only --out; remove --source and --val_source")
        _print_counts(verify_prepared(Path(_OUT.value)))
        print(f"all shards in {_OUT.value} match their hashes in the manifest")
        return
    if not _SOURCE.value or not _OUT.value:
        raise UserError("pass --source and --out, for example --source=stdlib --out=data/stdlib")
    check_split(_VAL_FRACTION.value, _VAL_SOURCE.value, "--val_fraction", "--val_source")
    plan = open_plan(_SOURCE.value, _VAL_SOURCE.value, _VAL_FRACTION.value, _SEPARATOR.value)
    tokenizer = load_tokenizer(_TOKENIZER.value)
    out = Path(_OUT.value)
    _print_counts(prepare(plan, tokenizer, out, _SHARD_TOKENS.value, _PROCESSES.value))
    print(f"to train on it: --config.data.source={out} --config.data.tokenizer={tokenizer.name}")


def _print_counts(manifest: Manifest) -> None:
    for name, split in manifest.splits.items():
        counts = {
            "token": split.tokens,
            "document": split.documents,
            "byte": split.bytes,
            "shard": len(split.shards),
        }
        print(f"{name}: {', '.join(counted(n or 0, noun) for noun, n in counts.items())}")
