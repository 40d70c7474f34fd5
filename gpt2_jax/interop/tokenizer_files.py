"""Converts between our tokenizers and Hugging Face's tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from gpt2_jax.data.json_tokenizer import END, END_OF_TEXT_NAMES, JsonTokenizer, library_errors
from gpt2_jax.data.marian_tokenizer import MarianTokenizer
from gpt2_jax.data.saved_tokenizer import TOKENIZER as FILE
from gpt2_jax.data.tokenizer import gpt2_merges, gpt2_ranks, load_tokenizer, printable_bytes
from gpt2_jax.data.tokenizer_protocol import END_OF_TEXT, START, TARGET_IDS, Tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.files import read_fields, read_file, text_lines, write_atomic, write_json
from gpt2_jax.interop.bert_tokenizer import (
    CLASS,
    ROBERTA_CLASSES,
    VOCAB,
    add_special_tokens,
    apply_settings,
    class_name,
    exported_settings,
    from_vocab_txt,
    vocab_txt,
)
from gpt2_jax.interop.marian_files import CLASS as MARIAN
from gpt2_jax.interop.marian_files import SOURCE, read_marian, write_marian
from gpt2_jax.interop.special_tokens import read_special_ids
from gpt2_jax.interop.template import template


def find_tokenizer(folder: Path, vocab_size: int, workdir: Path) -> tuple[str, str]:
    """Returns the `data.tokenizer` of a checkpoint's folder, and a one-line explanation.

    It is `gpt2` or `bytes` if the files are equivalent; otherwise they are combined into a
    tokenizer.json in `workdir`, for Marian in a format of our own.

    Args:
      vocab_size: the model's vocabulary size, used if the checkpoint has no tokenizer.

    Raises:
      UserError: if the files are invalid or have no end-of-text token.
    """
    found = _read_tokenizer(folder)
    if found is None and vocab_size == load_tokenizer("gpt2").size:
        return "gpt2", f"no tokenizer in {folder}: using gpt2, which has the same vocabulary size"
    if found is None:
        return f"ids:{vocab_size}", f"no tokenizer in {folder}: texts are decimal token ids"
    target = workdir / FILE
    write_json(target, found)
    load_tokenizer(str(target))  # raises if it is not valid
    for name in ("gpt2", "bytes"):
        if _is_equivalent(found, name):
            target.unlink()
            return name, f"tokenizer: {name}"
    return str(target), f"tokenizer: {target}"


def vocabulary(name: str) -> dict[str, int]:
    """Returns the id of each token of a tokenizer.json, empty for a built-in tokenizer."""
    tokenizer = load_tokenizer(name)
    if not isinstance(tokenizer, JsonTokenizer):
        return {}
    content = json.loads(tokenizer.content.decode("utf-8-sig"))
    return _ids({"added_tokens": [], **content})


def write_tokenizer(
    name: str,
    n_positions: int,
    out: Path,
    special: Mapping[str, str] | None = None,
    pairs: bool = False,
) -> int | None:
    """Writes the files of the tokenizer `name` to `out` and returns its end-of-text id.

    For `ids:N`, nothing is written and the result is None.

    Args:
      special: special tokens other than end-of-text, by field of tokenizer_config.json.
      pairs: whether texts are the sides of pairs, and framed as in the tokenizer's `side_frame`.
    """
    if name.startswith("ids:"):
        return None
    tokenizer = load_tokenizer(name)
    if isinstance(tokenizer, MarianTokenizer):
        write_marian(tokenizer, n_positions, out)
        return tokenizer.end_of_text
    content = _own_content(tokenizer) if isinstance(tokenizer, JsonTokenizer) else byte_level(name)
    if pairs:
        _set_side_frame(content, tokenizer)
    write_json(out / FILE, content)
    _write_older_files(name, content, out)
    end = tokenizer.token(tokenizer.end_of_text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        **(special or {}),
        **exported_settings(content),
        "model_max_length": n_positions,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", settings)
    return tokenizer.end_of_text


def _own_content(tokenizer: JsonTokenizer) -> dict[str, Any]:
    """Returns a tokenizer.json without what we add to it, or disable."""
    content: dict[str, Any] = json.loads(tokenizer.content.decode("utf-8-sig"))
    for token in content.get("added_tokens", []):
        for field in (END, *TARGET_IDS):  # transformers reads them from other files
            token.pop(field, None)
    content |= {"truncation": None, "padding": None}
    if "dropout" in content["model"]:
        content["model"]["dropout"] = None
    return content


def _set_side_frame(content: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Makes the post-processor frame a text as a side of a pair, unless it does already."""
    frame = tokenizer.side_frame
    framed = tokenizers.Tokenizer.from_str(json.dumps(content)).encode("").ids
    if framed != [*frame.prefix, *frame.suffix]:
        ends = ({tokenizer.token(i): i for i in ids} for ids in (frame.prefix, frame.suffix))
        content["post_processor"] = template(*ends)


def _write_older_files(name: str, content: dict[str, Any], out: Path) -> None:
    """Writes the files of BERT's and GPT-2's tokenizers, for tools without tokenizer.json."""
    if exported_settings(content):
        write_atomic(out / VOCAB, vocab_txt(content))
    if name == "gpt2":
        write_json(out / "vocab.json", content["model"]["vocab"])
        lines = "".join(f"{left} {right}\n" for left, right in content["model"]["merges"])
        write_atomic(out / "merges.txt", "#version: 0.2\n" + lines)


def byte_level(name: str) -> dict[str, Any]:
    """Returns a tokenizer.json for `gpt2`, or for `bytes`, which has no merges."""
    characters = printable_bytes()
    if name == "gpt2":
        ranks, merges = gpt2_ranks(), gpt2_merges()
    else:
        ranks, merges = {bytes([b]): b for b in range(256)}, []
    vocab = {"".join(characters[b] for b in token): rank for token, rank in ranks.items()}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(END_OF_TEXT, len(vocab), special=True)],
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


def _read_tokenizer(folder: Path) -> dict[str, Any] | None:
    """Combines a checkpoint's tokenizer files into one tokenizer.json, None if it has none.

    As in transformers, these are tokenizer.json, or else vocab.json and merges.txt, or BERT's
    vocab.txt, with settings from tokenizer_config.json, special_tokens_map.json, added_tokens.json
    and config.json. Marian's SentencePiece files take precedence over tokenizer.json.
    """
    settings = _optional_json(folder / "tokenizer_config.json")
    config = _optional_json(folder / "config.json")
    name = class_name(settings, config.get("model_type"))
    ids = read_special_ids(folder, config)
    targets = {field: ids[field] for field in TARGET_IDS if field in ids}
    if name == MARIAN and (folder / SOURCE).exists():
        named = settings | _optional_json(folder / "special_tokens_map.json")
        return read_marian(folder, named, targets, _named_tokens(settings, folder))
    if (folder / FILE).exists():
        content = read_fields(folder / FILE)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        content = _from_vocab_and_merges(folder)
        if name in ROBERTA_CLASSES:
            add_special_tokens(content, settings)
    elif (folder / VOCAB).exists():
        content = from_vocab_txt(folder, settings)
        apply_settings(content, settings, CLASS)
    else:
        return None
    with library_errors(f"{folder}: its tokenizer is not valid"):
        # Also checks the types that the code below relies on.
        tokenizers.Tokenizer.from_str(json.dumps(content))
    content["added_tokens"] = content.get("added_tokens") or []
    apply_settings(content, settings, name)
    _set_prefix_space(content, settings, name)
    _add_tokens(content, settings, folder)
    _mark_end_of_text(content, _chosen_end_of_text(content, settings, folder), targets)
    return content


def _optional_json(path: Path) -> dict[str, Any]:
    return read_fields(path) if path.exists() else {}


def _from_vocab_and_merges(folder: Path) -> dict[str, Any]:
    vocab = read_fields(folder / "vocab.json")
    try:
        lines = text_lines(read_file(folder / "merges.txt").decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / 'merges.txt'} is not UTF-8 text: {error}") from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not vocab or any(len(pair) != 2 for pair in merges):
        raise UserError(f"{folder}: vocab.json and merges.txt are not a GPT-2 tokenizer")
    content = byte_level("gpt2")
    content["model"] |= {"vocab": vocab, "merges": merges}
    content["added_tokens"] = []
    if END_OF_TEXT in vocab:
        content["added_tokens"] = [_added_token(END_OF_TEXT, vocab[END_OF_TEXT], special=True)]
    return content


def _added_token(text: str, token_id: Any, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": token_id, "content": text, **plain, "special": special}


def _set_prefix_space(content: dict[str, Any], settings: dict[str, Any], name: str) -> None:
    """Applies `add_prefix_space`, which these classes read only from tokenizer_config.json."""
    if name not in ("GPT2Tokenizer", "GPT2TokenizerFast", *ROBERTA_CLASSES):
        return
    pre_tokenizer = content.get("pre_tokenizer") or {}
    for step in [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = bool(settings.get("add_prefix_space", False))


def _add_tokens(content: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Adds the tokens of added_tokens.json and tokenizer_config.json to those of tokenizer.json."""
    added = content["added_tokens"]
    present = {token.get("id") for token in added}
    for token in _named_tokens(settings, folder):
        if token["id"] not in present:
            present.add(token["id"])
            added.append(token)
    added.sort(key=lambda token: token.get("id", 0))


def _named_tokens(settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Returns the tokens of added_tokens.json and tokenizer_config.json."""
    named = [
        _added_token(text, token_id, special=False)
        for text, token_id in _optional_json(folder / "added_tokens.json").items()
    ]
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(isinstance(t, dict) for t in decoder.values()):
        raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is not valid")
    for token_id, token in decoder.items():
        number = int(token_id) if token_id.isdecimal() and len(token_id) < 10 else token_id
        base = _added_token(token.get("content", ""), number, bool(token.get("special")))
        named.append(base | {key: token[key] for key in base if key in token})
    if wrong := [token for token in named if not _is_token(token)]:
        raise UserError(f"{folder}: the added token {wrong[0]['content']!r} is not valid")
    return named


def _is_token(token: dict[str, Any]) -> bool:
    text, number = token["content"], token["id"]
    return isinstance(text, str) and text != "" and type(number) is int and number >= 0


def _chosen_end_of_text(
    content: dict[str, Any], settings: dict[str, Any], folder: Path
) -> str | None:
    """Returns the checkpoint's end-of-text token, None if it does not specify one."""
    ids = _ids(content)
    special = _optional_json(folder / "special_tokens_map.json")
    chosen = special.get("eos_token") or settings.get("eos_token")
    if isinstance(chosen, dict):
        chosen = chosen.get("content")
    if chosen is None and END_OF_TEXT not in ids:
        wanted = _optional_json(folder / "config.json").get("eos_token_id")
        chosen = next((text for text, i in ids.items() if i == wanted), None)
    if chosen is None:
        return None
    if not isinstance(chosen, str) or chosen not in ids:
        raise UserError(
            f"{folder}: the tokenizer's eos_token {chosen!r} is not in its vocabulary; "
            "add it to added_tokens in tokenizer.json, or pass --tokenizer"
        )
    return chosen


def _mark_end_of_text(
    content: dict[str, Any], chosen: str | None, targets: Mapping[str, int]
) -> None:
    """Marks the end-of-text token for `JsonTokenizer`, and gives it the ids for targets.

    Args:
      chosen: None for the one that `JsonTokenizer` finds.
    """
    ids, added = _ids(content), content["added_tokens"]
    if chosen is None and targets:
        chosen = next((name for name in END_OF_TEXT_NAMES if name in ids), None)
    if chosen is None:
        return
    if all(token.get("content") != chosen for token in added):
        added.append(_added_token(chosen, ids[chosen], special=True))
        added.sort(key=lambda token: token.get("id", 0))
    for token in added:
        if token.get("content") == chosen:
            token |= {END: True, **targets}


def _ids(content: dict[str, Any]) -> dict[str, int]:
    """Returns the id of each token. A Unigram model lists its tokens in the order of their ids."""
    vocab = content["model"].get("vocab", {})
    if isinstance(vocab, list):
        vocab = {entry[0]: i for i, entry in enumerate(vocab) if entry}
    added = {token.get("content"): token.get("id") for token in content["added_tokens"]}
    return vocab | added


def _is_equivalent(content: dict[str, Any], name: str) -> bool:
    """Returns whether a tokenizer.json produces the ids of our tokenizer `gpt2` or `bytes`."""
    model, ours = content.get("model", {}), byte_level(name)
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])
    ]
    level = content.get("pre_tokenizer") or {}
    tokens = content.get("added_tokens", [])
    added = {token.get("content") for token in tokens}
    return (
        model.get("vocab") == ours["model"]["vocab"]
        and merges == ours["model"]["merges"]
        and level.get("type") == "ByteLevel"
        and not level.get("add_prefix_space")
        and (name == "bytes" or level.get("use_regex", True))
        and not content.get("normalizer")
        and added <= {END_OF_TEXT}
        and not any(_starts_otherwise(token) for token in tokens)
        and _end_of_text(content) in (END_OF_TEXT, None)
    )


def _starts_otherwise(token: dict[str, Any]) -> bool:
    """Returns whether the ids for targets differ from those of a tokenizer without them."""
    targets = {field: token[field] for field in TARGET_IDS if field in token}
    return targets not in ({}, {START: token.get("id")})


def _end_of_text(content: dict[str, Any]) -> str | None:
    """Returns the token marked as end-of-text, None if there is none."""
    marked = [t["content"] for t in content.get("added_tokens", []) if t.get(END)]
    return marked[0] if marked else None
