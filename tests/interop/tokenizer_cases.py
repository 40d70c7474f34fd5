"""Tokenizer files of checkpoints, with the ids that transformers returns."""

import json

from tests.data import tokenizers

TEXT = "the river bends"
PLAIN, PREFIXED = tokenizers.bpe(), tokenizers.bpe(prefix_space=True)
TWO = tokenizers.bpe(ends=("<|endoftext|>", "</s>"))
IDS, PREFIXED_IDS, TWO_IDS = [
    [13, 16, 17, 20, 2, 8],
    [11, 13, 16, 17, 20, 2, 8],
    [14, 17, 18, 21, 3, 9],
]
GPT2, FAST = {"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}
RIVER = {"content": "river", "special": False, "normalized": False}
ADDED = {"__type": "AddedToken", "content": "</s>"}
MERGES = "#version: 0.2\n" + "".join(f"{merge}\n" for merge in PLAIN["model"]["merges"])
OLD = {"vocab.json": PLAIN["model"]["vocab"], "merges.txt": MERGES}


def settings(content, **fields):
    return {"tokenizer.json": content, "tokenizer_config.json": fields}


# name: (files, ids of TEXT, end-of-text id)
CASES = {
    "plain": ({"tokenizer.json": PLAIN}, IDS, 0),
    "prefix requested": (settings(PLAIN, **GPT2, add_prefix_space=True), PREFIXED_IDS, 0),
    "prefix without a class": (settings(PLAIN, add_prefix_space=True), PREFIXED_IDS, 0),
    "prefix not requested": (settings(PREFIXED, **GPT2), IDS, 0),
    "prefix in the file": (settings(PREFIXED, **FAST, eos_token="<|endoftext|>"), PREFIXED_IDS, 0),
    "merges": (OLD, IDS, 0),
    "merges and prefix": (
        OLD | {"tokenizer_config.json": GPT2 | {"add_prefix_space": True}},
        PREFIXED_IDS,
        0,
    ),
    "merges and an added token": (
        OLD | {"added_tokens.json": {"river": 21}},
        [13, 11, 21, 20, 2, 8],
        0,
    ),
    "end": (settings(TWO, **GPT2, eos_token="</s>"), TWO_IDS, 1),
    "end with its properties": (settings(TWO, **FAST, eos_token=ADDED), TWO_IDS, 1),
    "end of the map": (
        settings(TWO, **FAST, eos_token="<|endoftext|>")
        | {"special_tokens_map.json": {"eos_token": "</s>"}},
        TWO_IDS,
        1,
    ),
    "an added token": (
        settings(PLAIN, **FAST, eos_token="<|endoftext|>", added_tokens_decoder={"21": RIVER}),
        [13, 11, 21, 20, 2, 8],
        0,
    ),
}


def write(folder, files):
    """Writes the files of a case, and GPT-2's config.json, to a new folder."""
    folder.mkdir()
    for name, content in ({"config.json": {"model_type": "gpt2"}} | files).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
