"""Tokenizer files of BERT and RoBERTa, with the ids that transformers returns."""

import json

from tests.data import tokenizers

TEXT = "The River bends"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "river",
    "The",
    "River",
    "bend",
    "##s",
]
VOCAB = "".join(f"{word}\n" for word in WORDS)
BERT = {"config.json": {"model_type": "bert"}}
LOWER_IDS, CASED_IDS = [2, 5, 6, 9, 10, 3], [2, 7, 8, 9, 10, 3]


def wordpiece(lowercase):
    """Returns the tokenizer.json that BertTokenizer saves."""
    special = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}
    special["normalized"] = False
    one, two = ({"SpecialToken": {"id": f"[{name}]", "type_id": 0}} for name in ("CLS", "SEP"))
    single = [one, {"Sequence": {"id": "A", "type_id": 0}}, two]
    second = [{"Sequence": {"id": "B", "type_id": 1}}]
    second.append({"SpecialToken": {"id": "[SEP]", "type_id": 1}})
    template = {"type": "TemplateProcessing", "single": single, "pair": [*single, *second]}
    template["special_tokens"] = {
        name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("[CLS]", 2), ("[SEP]", 3))
    }
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": WORDS[i], **special} for i in range(5)],
        "normalizer": normalizer | {"strip_accents": None, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(WORDS)},
        },
    }


SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BPE = tokenizers.bpe(ends=SPECIAL)
MERGES = "#version: 0.2\n" + "".join(f"{merge}\n" for merge in BPE["model"]["merges"])
ROBERTA = {"config.json": {"model_type": "roberta"}, "vocab.json": BPE["model"]["vocab"]}
ROBERTA |= {"merges.txt": MERGES}
BPE_TEXT = "the river bends"
BPE_IDS, PREFIXED_IDS = [0, 17, 20, 21, 24, 6, 12, 2], [0, 15, 17, 20, 21, 24, 6, 12, 2]


def settings(**fields):
    return {"tokenizer_config.json": fields}


# name: (files, text, its ids with special tokens)
CASES = {
    "vocab.txt": (BERT | {"vocab.txt": VOCAB}, TEXT, LOWER_IDS),
    "cased": (BERT | {"vocab.txt": VOCAB} | settings(do_lower_case=False), TEXT, CASED_IDS),
    "tokenizer.json": (BERT | {"tokenizer.json": wordpiece(True)}, TEXT, LOWER_IDS),
    "class lowers": (BERT | {"tokenizer.json": wordpiece(False)}, TEXT, LOWER_IDS),
    "class keeps": (
        BERT
        | {"tokenizer.json": wordpiece(True)}
        | settings(tokenizer_class="BertTokenizer", do_lower_case=False),
        TEXT,
        CASED_IDS,
    ),
    "file decides": (
        BERT
        | {"tokenizer.json": wordpiece(False)}
        | settings(tokenizer_class="PreTrainedTokenizerFast"),
        TEXT,
        CASED_IDS,
    ),
    "merges": (ROBERTA, BPE_TEXT, BPE_IDS),
    "merges and prefix": (
        ROBERTA | settings(tokenizer_class="RobertaTokenizer", add_prefix_space=True),
        BPE_TEXT,
        PREFIXED_IDS,
    ),
}


def write(folder, files):
    """Writes the files of a case to a new folder."""
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
