"""Reads words with a tag each from column files (CoNLL), in the IOB1 or IOB2 scheme.

IOB2 tags the first word of each entity with B-. IOB1, the scheme of CoNLL-2003, uses I- there,
except between adjacent entities of the same type (Tjong Kim Sang & De Meulder 2003).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gpt2_jax.data.examples.fields import Row, is_number
from gpt2_jax.data.examples.lines import read_lines
from gpt2_jax.data.examples.records import Counts, TaggedWords
from gpt2_jax.errors import UserError, counted, quoted

SCHEMES = ("iob1", "iob2")
DOCUMENT_START = "-DOCSTART-"
_HEAD = 1000  # lines that decide how cells are separated
_Line = tuple[str, str, str]  # word, tag, file and line


def read_conll(
    path: Path, words: str, tags: str, scheme: str, counts: Counts
) -> Iterator[TaggedWords]:
    """Yields the sentences of a column file with tags in IOB2.

    Cells are separated by tabs if the first line has one, else by white space. A line whose cells
    are all empty ends a sentence. In files with tabs, a line that starts with `#` and has no tab is
    a comment (CoNLL-U). Sentences that start with -DOCSTART- are skipped and counted.

    Args:
      words, tags: numbers of the columns, from 0, or from -1 for the last.
      scheme: `iob1` or `iob2`.
      counts: where repaired tags are counted.

    Raises:
      UserError: naming the file and line if a cell is missing or a tag is not valid.
    """
    for name, column in (("words", words), ("tags", tags)):
        if not is_number(column):
            raise UserError(
                f"data.columns: {name}={column} must be the number of a column in {path}, as in "
                "words=0,tags=-1"
            )
    for sentence in _sentences(path, words, tags):
        if sentence[0][0] == DOCUMENT_START:
            counts["document_starts"] += 1
            continue
        yield tagged(sentence, scheme, counts)


def _sentences(path: Path, words: str, tags: str) -> Iterator[list[_Line]]:
    sentence: list[_Line] = []
    has_tabs = _has_tabs(path)
    for number, line in read_lines(path):
        if not line.strip(" \t"):
            if sentence:
                yield sentence
            sentence = []
            continue
        if has_tabs and line.startswith("#") and "\t" not in line:
            continue
        row = Row(line.split("\t") if has_tabs else line.split(), f"{path} line {number}")
        word, tag = row.text(words), row.text(tags).strip()
        if not word:
            raise UserError(f"{row.where}: the word is empty; remove the line")
        sentence.append((word, tag, row.where))
    if sentence:
        yield sentence


def _has_tabs(path: Path) -> bool:
    """Returns whether the cells of a file are separated by tabs.

    The first line that is not empty decides, of those that do not start with `#` if there are any.
    """
    lines = [line for _, line in islice(read_lines(path), _HEAD) if line.strip(" \t")]
    cells = [line for line in lines if not line.startswith("#")] or lines
    return bool(cells) and "\t" in cells[0]


def tagged(sentence: Sequence[_Line], scheme: str, counts: Counts) -> TaggedWords:
    """Returns a sentence with its tags in IOB2.

    In IOB2, an I- tag that follows O or a tag of another type starts an entity: it is repaired to
    B- and counted as `tags_repaired`. In IOB1 this is how an entity starts.

    Args:
      sentence: word, tag, and file and line.

    Raises:
      UserError: if a tag is not `O`, `B-TYPE` or `I-TYPE`, naming the file and line.
    """
    if scheme not in SCHEMES:
        raise UserError(f"data.tag_scheme={scheme} must be one of {', '.join(SCHEMES)}")
    out: list[str] = []
    for _, tag, where in sentence:
        kind = _entity_type(tag, where)
        before = out[-1][2:] if out else ""
        if tag[0] == "I" and before != kind:
            if scheme == "iob2":
                counts["tags_repaired"] += 1
            tag = f"B-{kind}"
        out.append(tag)
    words = tuple(word for word, _, _ in sentence)
    return TaggedWords(words, tuple(out), sentence[0][2])


def _entity_type(tag: str, where: str) -> str:
    """Returns the entity type of a tag; empty for O."""
    if tag == "O":
        return ""
    if tag[:2] in ("B-", "I-") and len(tag) > 2:
        return tag[2:]
    raise UserError(
        f"{where}: {quoted(tag)} is not an IOB tag (O, B-TYPE or I-TYPE); correct it, or set the "
        "column of the tags in data.columns"
    )


def tagged_row(row: Row, words: str, tags: str, scheme: str, counts: Counts) -> TaggedWords:
    """Returns a row with a list of words and a list of tags, as `tagged` does.

    Raises:
      UserError: if the lists differ in length, or as `tagged`.
    """
    found = [[one.value for one in row.rows(column)] for column in (words, tags)]
    if len(found[0]) != len(found[1]):
        raise UserError(
            f"{row.where} has {counted(len(found[0]), 'word')} but {counted(len(found[1]), 'tag')}"
        )
    if not found[0]:
        raise UserError(f"{row.where} has no words; remove it")
    lines = [
        (row.text_of(word, words), row.text_of(tag, tags), row.where)
        for word, tag in zip(*found, strict=True)
    ]
    return tagged(lines, scheme, counts)
