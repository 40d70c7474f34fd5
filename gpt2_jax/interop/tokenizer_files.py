"""A tokenizer as Hugging Face's files, and those files as one of our tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2_jax.data.tokenizer import (
    JsonTokenizer,
    gpt2_merges,
    gpt2_ranks,
    load_tokenizer,
    printable_bytes,
)
from gpt2_jax.errors import UserError
from gpt2_jax.files import write_json
from gpt2_jax.interop.files import read_json
from gpt2_jax.train.rundir import TOKENIZER as FILE

END_OF_TEXT = "<|endoftext|>"


def find_tokenizer(folder: Path, vocab_size: int, workdir: Path) -> tuple[str, str]:
    """Returns `data.tokenizer` for a checkpoint's folder, and a line that says why.

    GPT-2's own files become `gpt2`, our exported bytes `bytes`; others are copied into `workdir`
    as one tokenizer.json.

    Raises:
      UserError: if its files are damaged or have no end-of-text token.
    """
    found = _read(folder)
    if found is None and vocab_size == load_tokenizer("gpt2").size:
        return "gpt2", f"{folder} has no tokenizer; its vocabulary has the size of GPT-2's"
    if found is None:
        return f"ids:{vocab_size}", f"{folder} has no tokenizer: texts are decimal token ids"
    target = workdir / FILE
    write_json(target, found)
    load_tokenizer(str(target))  # refuses what is no tokenizer
    for name in ("gpt2", "bytes"):
        if _gives_ids_of(found, name):
            target.unlink()
            return name, f"its tokenizer is `{name}`"
    return str(target), f"its tokenizer is now {target}"


def write_tokenizer(name: str, n_positions: int, out: Path) -> int | None:
    """Writes the files of our tokenizer `name` into `out`; returns its end-of-text id.

    `ids:N` has none, since it stands for text that is not there.
    """
    if name.startswith("ids:"):
        return None
    tokenizer = load_tokenizer(name)
    if isinstance(tokenizer, JsonTokenizer):
        content, end = read_json(Path(name)), tokenizer.end_of_text_name
    else:
        content, end = byte_level(name), END_OF_TEXT
    write_json(out / FILE, content)
    if name == "gpt2":  # for tools that know only these two
        write_json(out / "vocab.json", content["model"]["vocab"])
        lines = "".join(f"{left} {right}\n" for left, right in content["model"]["merges"])
        (out / "merges.txt").write_text("#version: 0.2\n" + lines)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": n_positions,
            "clean_up_tokenization_spaces": False,
        },
    )
    return tokenizer.end_of_text


def byte_level(name: str) -> dict[str, Any]:
    """Returns tokenizer.json of `gpt2`, or of `bytes`, which is the same with no merges."""
    shown = printable_bytes()
    if name == "gpt2":
        ranks, merges = gpt2_ranks(), gpt2_merges()
    else:
        ranks, merges = {bytes([b]): b for b in range(256)}, []
    vocab = {"".join(shown[b] for b in token): rank for token, rank in ranks.items()}
    end = {"id": len(vocab), "content": END_OF_TEXT, "special": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | plain],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": name == "gpt2"},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | {END_OF_TEXT: len(vocab)},
            "merges": [list(pair) for pair in merges],
        },
    }


def _read(folder: Path) -> dict[str, Any] | None:
    """Returns tokenizer.json's content, or the same made of vocab.json and merges.txt."""
    if (folder / FILE).exists():
        return read_json(folder / FILE)
    if not (folder / "vocab.json").exists() or not (folder / "merges.txt").exists():
        return None
    vocab = read_json(folder / "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / 'merges.txt'} is no text: {error}") from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if END_OF_TEXT not in vocab or any(len(pair) != 2 for pair in merges):
        raise UserError(f"{folder}: vocab.json and merges.txt are not GPT-2's kind of tokenizer")
    content = byte_level("gpt2")
    content["model"] |= {"vocab": vocab, "merges": merges}
    content["added_tokens"][0]["id"] = vocab[END_OF_TEXT]
    return content


def _gives_ids_of(content: dict[str, Any], name: str) -> bool:
    """Returns whether a tokenizer.json gives our tokenizer's ids, with no added tokens besides."""
    model, want = content.get("model", {}), byte_level(name)
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])
    ]
    level = content.get("pre_tokenizer") or {}
    added = {token.get("content") for token in content.get("added_tokens", [])}
    return (
        model.get("vocab") == want["model"]["vocab"]
        and merges == want["model"]["merges"]
        and level.get("type") == "ByteLevel"
        and not level.get("add_prefix_space")
        and (name == "bytes" or level.get("use_regex", True))
        and not content.get("normalizer")
        and added <= {END_OF_TEXT}
    )
