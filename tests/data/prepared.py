"""Small prepared corpora, and functions to read their tokens."""

import json

from gpt2_jax.data.corpus import open_plan
from gpt2_jax.data.preparation import prepare
from gpt2_jax.data.shards import Tokens
from gpt2_jax.data.tokenizer import load_tokenizer
from tests.tools import make_text

BYTES = load_tokenizer("bytes")


def write_documents(path, n, length=200):
    docs = [make_text(length, seed=i) for i in range(n)]
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    return docs


def ids_of(tokens: Tokens) -> list[int]:
    return tokens.window(0, len(tokens)).tolist()


def split_documents(tokens: Tokens) -> list[str]:
    """Returns the text of each document."""
    out: list[list[int]] = [[]]
    for i in ids_of(tokens):
        out.append([]) if i == 256 else out[-1].append(i)
    return [bytes(ids).decode() for ids in out]


def small_folder(tmp_path):
    write_documents(tmp_path / "a.jsonl", 30)
    plan = open_plan(str(tmp_path / "a.jsonl"), None, 0.1)
    return prepare(plan, BYTES, tmp_path / "out"), tmp_path / "out"


def breaking_after(calls):
    class Breaks(type(BYTES)):
        left = calls

        def encode(self, texts):
            Breaks.left -= 1
            if Breaks.left < 0:
                raise RuntimeError("killed")
            return super().encode(texts)

    return Breaks()
