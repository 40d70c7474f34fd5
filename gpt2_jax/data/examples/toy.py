"""Small generated tasks with exact answers: `toy:reverse`, `toy:language`, `toy:tags`.

`SOURCE#val` and `SOURCE#test` are their other splits. No sentence of one split is in another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator

from gpt2_jax.data.examples.records import Pair, Record, TaggedWords
from gpt2_jax.errors import UserError, suggestion

PREFIX = "toy:"
_VERSION = 1
_SIZES = {"train": 5000, "val": 250, "test": 250}
_HELD_OUT = 16  # of 256
_LETTERS = "abcdefghijklmnopqrst"

# English, the toy language's word, its gender.
_NOUNS = (
    ("dog", "bola", "f"),
    ("cat", "mirun", "m"),
    ("bird", "tesa", "f"),
    ("child", "palon", "m"),
    ("teacher", "korin", "m"),
    ("river", "lumia", "f"),
    ("house", "dasa", "f"),
    ("tree", "ferun", "m"),
)
_ADJECTIVES = (("red", "rov"), ("old", "san"), ("small", "pik"), ("happy", "gel"))
_VERBS = (("sees", "vid"), ("follows", "sek"), ("loves", "amar"), ("hears", "od"))
_NUMBERS = (("the", ""), ("two", "du"), ("three", "tri"), ("many", "mul"))

_FIRST = ("Ada", "Jordan", "Paris", "Noor", "Emil", "Florence", "Lima", "Ivo", "Selma", "Georgia")
_LAST = ("", " Noor", " Jordan", " Lind", " Oslo", " Acme")
_PEOPLE = tuple(first + last for first in _FIRST for last in _LAST)
_PLACES = (
    "Jordan",
    "Paris",
    "Florence",
    "Oslo",
    "New Oslo",
    "Lima",
    "East Lima",
    "Georgia",
    "Lind",
)
_FIRMS = ("Acme", "Noor Works", "Lima Steel", "Oslo Rail", "Paris and Sons", "Lind", "Paris")
# Names are ambiguous; the words around them decide their type.
_SENTENCES = (
    "{PER} lives in {LOC} .",
    "{PER} works for {ORG} in {LOC} .",
    "shares of {ORG} fell after {PER} left .",
    "the train from {LOC} to {LOC} is late .",
    "yesterday {PER} met {PER} near {LOC} .",
    "nobody at {ORG} knows {PER} .",
    "it often rains in {LOC} .",
)
_NAMES = {"PER": _PEOPLE, "LOC": _PLACES, "ORG": _FIRMS}


def is_toy(spec: str) -> bool:
    """Returns whether a source is generated."""
    return spec.startswith(PREFIX)


def toy_fingerprint(spec: str) -> str:
    """Returns what identifies the records of a generated source."""
    return f"{spec.partition('#')[0]}#{_split_of(spec)} version {_VERSION}"


def toy_records(spec: str, task: str) -> Iterator[Record]:
    """Yields the records of a generated source.

    Raises:
      UserError: if there is no such source, or it is for another task.
    """
    name = spec.partition("#")[0]
    if name not in _TASKS:
        raise UserError(f"unknown source {name}{suggestion(name, _TASKS)}")
    for_task, make = _TASKS[name]
    if task != for_task:
        raise UserError(f"source {name} is for task.name={for_task}, not {task}")
    split = _split_of(spec)
    generator, n = random.Random(f"{name} {_VERSION}"), 0
    while n < _SIZES[split]:
        record = make(generator, f"{name}#{split} line {n + 1}")
        if _split_by_group(record.group) == split:
            yield record
            n += 1


def _split_by_group(group: str) -> str:
    bucket = hashlib.sha256(group.encode()).digest()[0]
    return "val" if bucket < _HELD_OUT else "test" if bucket < 2 * _HELD_OUT else "train"


def _split_of(spec: str) -> str:
    split = spec.partition("#")[2] or "train"
    if split not in _SIZES:
        raise UserError(f"source {spec} has no split {split}{suggestion(split, _SIZES)}")
    return split


def _reverse(generator: random.Random, where: str) -> Pair:
    """Letters, and the same in reverse (JoeyNMT's toy task)."""
    letters = generator.choices(_LETTERS, k=generator.randint(4, 12))
    return Pair(" ".join(letters), (" ".join(reversed(letters)),), where)


def _translate(generator: random.Random, where: str) -> Pair:
    """English, and a language with the verb last, adjectives after nouns, and agreement.

    Adjectives end in -a or -o by gender and nouns in -i with a number; the verb ends in -es if the
    subject has one, else in -e.
    """
    (subject, is_plural), (other, _) = _phrase(generator), _phrase(generator)
    english, toy = generator.choice(_VERBS)
    verb = english.removesuffix("s") if is_plural else english
    source = f"{subject[0]} {verb} {other[0]} ."
    target = f"{subject[1]} {other[1]} {toy}{'es' if is_plural else 'e'} ."
    return Pair(source, (target,), where)


def _phrase(generator: random.Random) -> tuple[tuple[str, str], bool]:
    """Returns a noun phrase in both languages, and whether it is plural."""
    number, toy_number = generator.choice(_NUMBERS)
    noun, toy_noun, gender = generator.choice(_NOUNS)
    adjectives = generator.sample(_ADJECTIVES, generator.randint(0, 2))
    is_plural = number != "the"
    plural = {"child": "children"}.get(noun, f"{noun}s") if is_plural else noun
    article = toy_number or ("la" if gender == "f" else "lo")
    ending = "a" if gender == "f" else "o"
    english = " ".join([number, *(word for word, _ in adjectives), plural])
    toy_words = [article, toy_noun + ("i" if is_plural else "")]
    toy_words += [word + ending for _, word in reversed(adjectives)]
    return (english, " ".join(toy_words)), is_plural


def _tags(generator: random.Random, where: str) -> TaggedWords:
    """Sentences with people, places and organizations."""
    words: list[str] = []
    tags: list[str] = []
    for part in generator.choice(_SENTENCES).split():
        kind = part.strip("{}")
        found = generator.choice(_NAMES[kind]).split() if part[0] == "{" else [part]
        words += found
        tags += ["O"] if part[0] != "{" else [f"B-{kind}", *[f"I-{kind}"] * (len(found) - 1)]
    return TaggedWords(tuple(words), tuple(tags), where)


_TASKS: dict[str, tuple[str, Callable[[random.Random, str], Pair | TaggedWords]]] = {
    "toy:reverse": ("translate", _reverse),
    "toy:language": ("translate", _translate),
    "toy:tags": ("tag", _tags),
}
