"""Small tokenizer.json contents, one per type of model."""

END = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def content(model, added, **parts):
    """Returns the content of a tokenizer.json; `added` maps ids to special tokens."""
    tokens = [{"id": i, "content": text, **END} for text, i in added.items()]
    empty = {"version": "1.0", "truncation": None, "padding": None, **dict.fromkeys(PARTS)}
    return empty | {"added_tokens": tokens, "model": model} | parts


def bpe(prefix_space=False, dropout=None, ends=("<|endoftext|>",), **parts):
    """Byte-level BPE for the letters of `the river bends`."""
    merges = ["t h", "th e", "\u0120 r", "i v", "\u0120r iv", "e r", "e n", "b en", "\u0120 ben"]
    letters = sorted(set("theriverbends\u0120"))
    vocab = [*ends, *letters, *(merge.replace(" ", "") for merge in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True}
    model = {
        "type": "BPE",
        "dropout": dropout,
        "vocab": {token: i for i, token in enumerate(vocab)},
        "merges": merges,
    }
    ids = {end: i for i, end in enumerate(ends)}
    return content(model, ids, pre_tokenizer=level, decoder=level, **parts)


def metaspace():
    """As in SentencePiece, a space belongs to the next word, and the first word has one too."""
    words = ["<unk>", "</s>", "\u2581the", "\u2581river", "\u2581bends", "s", "\u2581", "\u00e9"]
    vocab = {word: i for i, word in enumerate(words)}
    level = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    return content(model, {"<unk>": 0, "</s>": 1}, pre_tokenizer=level, decoder=level)


def wordpiece():
    """As in BERT, a token that does not start a word has the prefix `##`."""
    words = ["[UNK]", "[SEP]", "the", "river", "##s", "bends"]
    model = {
        "type": "WordPiece",
        "vocab": {word: i for i, word in enumerate(words)},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    return content(
        model,
        {"[UNK]": 0, "[SEP]": 1},
        normalizer={"type": "Lowercase"},
        pre_tokenizer={"type": "Whitespace"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def word_level(last):
    """Whole words, with gaps in the ids, the largest of which is `last`."""
    vocab = {"[UNK]": 0, "the": 3, "river": 10, "<eos>": last}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    return content(model, {}, pre_tokenizer={"type": "WhitespaceSplit"})


TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 12},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
# Tokenizers with settings that would change a text.
UNFIT = {
    "plain": bpe(),
    "truncation": bpe() | {"truncation": TRUNCATION},
    "padding": bpe() | {"padding": PADDING},
    "both": bpe() | {"truncation": TRUNCATION, "padding": PADDING},
    "dropout": bpe(dropout=0.9),
}
