"""The documents read from each file format, and errors that name the location in the file.

The expected rows of CSV files are those of pandas 3.1, without empty texts:
`pandas.read_csv(file, sep=..., keep_default_na=False)`.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.data.readers import _READERS, file_format, read_documents
from gpt2_jax.errors import UserError
from tests.tools import SHARED

AB = ["a river, wide", "the séa"]
ROWS = [{"text": text} for text in AB]


def documents(path):
    return [piece.text for piece in read_documents(path)]


def dumped(value):
    return json.dumps(value).encode()


def lines(*rows):
    return b"".join(dumped(row) + b"\n" for row in rows)


READ = [
    # -- CSV
    ("a.csv", 'id,text\n1,"a river, wide"\n2,the séa\n'.encode(), AB),
    ("a.csv", 'text;label\na river, wide;0\n"the séa";1\n'.encode(), AB),
    ("a.csv", "id\ttext\n1\ta river, wide\n2\tthe séa\n".encode(), AB),
    ("a.tsv", "id\ttext\n1\ta river, wide\n2\tthe séa\n".encode(), AB),
    ("a.tsv", "text\na river, wide\nthe séa\n".encode(), AB),
    ("a.csv", "id|text\n1|a river, wide\n2|the séa\n".encode(), AB),
    ("a.csv", codecs.BOM_UTF8 + 'text,id\n"a river, wide",1\nthe séa,2\n'.encode(), AB),
    ("a.csv", 'text\n"a river, wide"\nthe séa\n'.encode("utf-16"), AB),
    ("a.csv", b'joke\nWhy?\n"Quoted, fine."\n', ["Why?", "Quoted, fine."]),
    ("a.csv", b'id,text\n1,He measured 5""\n2,"5"" wide"\n', ['He measured 5""', '5" wide']),
    ("a.csv", b'id,text\r\n1,"a\r\n\r\nb"\r\n\r\n2,NA\r\n', ["a\r\n\r\nb", "NA"]),
    (
        "a.csv",
        'id,text\n1,"one\ntwo\u2028three\x0cfour"\n'.encode(),
        ["one\ntwo\u2028three\x0cfour"],
    ),
    ("a.csv", b"id,text\n1,\n2,x\n", ["x"]),
    ("a.csv", b"id,text\n", []),
    # -- JSON
    ("a.json", dumped({"title": "t", "text": "long", "tags": ["river", "sea"]}), ["long"]),
    ("a.json", dumped({"id": ["id0", "id1"], "text": AB}), AB),
    ("a.json", dumped({"text": AB, "id": ["id0", "id1"]}), AB),
    ("a.json", dumped({"id": {"0": 5, "1": 6}, "text": dict(zip("01", AB, strict=True))}), AB),
    ("a.json", dumped({"languages": ["en", "de"], "data": ROWS}), AB),
    ("a.json", dumped({"text": "long", "authors": [{"name": "Ann"}]}), ["long"]),
    ("a.json", dumped(ROWS), AB),
    ("a.json", codecs.BOM_UTF8 + dumped(ROWS), AB),
    ("a.json", json.dumps(ROWS).encode("utf-16-le").join([codecs.BOM_UTF16_LE, b""]), AB),
    ("a.json", lines(*ROWS), AB),
    ("a.json", dumped("whole text"), ["whole text"]),
    ("a.jsonl", codecs.BOM_UTF8 + lines(*ROWS), AB),
    ("a.jsonlines", lines(*ROWS), AB),
    ("a.ndjson", lines(*AB), AB),
    ("a.jsonl", '{"text": "a\u2028b"}\n\n{"text": null}\n{"text": ""}\n'.encode(), ["a\u2028b"]),
    # -- text
    ("a.txt", codecs.BOM_UTF8 + "the séa".encode(), ["the séa"]),
    ("a.txt", "the séa".encode("utf-16"), ["the séa"]),
    ("a.txt", codecs.BOM_UTF16_BE + "the séa".encode("utf-16-be"), ["the séa"]),
    ("a.txt", "the séa".encode("utf-32"), ["the séa"]),
    ("a.txt", b"one\r\ntwo\r\n", ["one\r\ntwo\r\n"]),
    ("a.txt", b"", []),
]


@pytest.mark.parametrize(("name", "content", "expected"), READ)
def test_supported_files(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert documents(tmp_path / name) == expected


REFUSED = [
    ("a.csv", b"joke\nWhy, said the fox, is it cold?\nNo commas here\n", "row 2"),
    ("a.csv", b"id,text\n1,a\n\n2,I ate pie, ice cream\n", "row 4"),
    ("a.csv", b'id,text\n1,"a\nb"\n2,c,d\n', r"row 3 \(line 4\)"),
    ("a.csv", b"id,text\n1\n", "row 2"),
    ("a.csv", b'id,text\n1,x\n2,"open quote\n3,y\n4,z\n', "row 3.*never closed"),
    ("a.csv", b'id,text\n1,"He said "hi" there"\n', "row 2"),
    ("a.csv", b"I ate pie, ice cream\nI ate cake, tea\n", "column named text"),
    ("a.csv", b"joke;label\nWhy?;0\n", "columns are joke, label"),
    ("a.csv", b"I ate pie and some ice cream\nI ate cake\n", "row 1"),
    ("a.csv", b"text,text\na,b\n", "2 columns named text"),
    ("a.csv", b"", "column named text"),
    ("a.csv", b"text\n\xff\n", "a.csv"),
    ("a.json", dumped({"train": ROWS, "test": ROWS}), "train, test"),
    ("a.json", dumped({"text": "about", "data": ROWS}), "text, data"),
    ("a.json", dumped({"columns": ["id", "text"], "data": [[0, "x"]]}), "columns, data"),
    ("a.json", dumped({"id": ["id0"], "tags": ["river"]}), "id, tags"),
    ("a.json", dumped({"meta": {"author": "x"}}), "meta"),
    ("a.json", dumped([*ROWS, {"content": "x"}]), "entry 3.*'text'"),
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.json", b"[", "a.json is not JSON"),
    ("a.json", b"3", "entry 1"),
    ("a.jsonl", lines({"content": "x"}, {"text": "y"}), "line 2.*'content'"),
    ("a.jsonl", lines({"text": "x"}, "y"), "line 2"),
    ("a.jsonl", lines("x", {"text": "y"}), "line 2"),
    ("a.jsonl", lines({"meta": "v1"}, {"text": "y"}), "line 2.*'meta'"),
    ("a.jsonl", b'{"text": "x"}\n{"text": NaN}\n', "line 2"),
    ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2"),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2"),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud83d"}\n', "line 2.*surrogate"),
    ("a.jsonl", b'{"text": "x"}\n{"a":' + b"[" * 100_000, "line 2 is nested too deeply"),
    ("a.jsonl", b'{"a": "x", "b": "y"}\n', "line 1.*columns are a, b"),
    ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl"),
    ("a.jsonl", b'{"text": "x", "n": 1}\n{"text": "y", "n": 2, "text": "z"}\n', "line 2.*'text'"),
    ("a.json", b'{"story": ["x"], "story": ["y"]}', "a.json.*'story'"),
    ("a.csv", b'{"text": "x"}\n{"text": "y"}\n', "a.csv row 1"),
    ("a.txt", b"abc\0def", "a.txt is binary"),
    ("a.txt", b"caf\xe9 caf\xe9", "a.txt is not UTF-8"),
    ("a.txt", "the séa".encode("utf-16")[:-1], "a.txt"),
    ("a.parquet", b"", "a.parquet"),
    ("a.arrow", b"no arrow here", "a.arrow"),
    ("a.gz", b"not packed", "a.gz"),
    ("a.txt.gz", gzip.compress(b"text", mtime=0) + b"garbage!", "a.txt.gz"),
    ("a.txt.bz2", b"not packed", "a.txt.bz2"),
    ("a.txt.xz", b"not packed", "a.txt.xz"),
    ("a.txt.zst", b"not packed", "a.txt.zst"),
]


@pytest.mark.parametrize(("name", "content", "place"), REFUSED)
def test_invalid_files_are_rejected_with_location(tmp_path, name, content, place):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=place) as caught:
        documents(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# -- Parquet and Arrow

COLUMNS = {
    "string": pa.array(AB),
    "large": pa.array(AB, pa.large_string()),
    "view": pa.array(AB, pa.string_view()),
    "binary": pa.array([text.encode() for text in AB], pa.binary()),
    "dictionary": pa.array(AB).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_text_column_types(tmp_path, kind):
    table = pa.table({"meta": pa.array([{"text": "no"}] * 2), "text": COLUMNS[kind]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == AB
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert documents(tmp_path / "a.arrow") == AB


def test_parquet_columns(tmp_path):
    pq.write_table(pa.table({"text.body": AB}), tmp_path / "dotted.parquet")
    assert documents(tmp_path / "dotted.parquet") == AB
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert documents(tmp_path / "empty.parquet") == []
    pq.write_table(pa.table({"text": [None, "x"]}), tmp_path / "nulls.parquet")
    assert documents(tmp_path / "nulls.parquet") == ["x"]


@pytest.mark.parametrize(
    ("column", "place"),
    [
        (pa.array([AB]), "column 'text'.*list"),
        (pa.array([1, 2]), "column 'text'.*int64"),
        (pa.array([b"ok", b"\xff"]), "row 2"),
    ],
)
def test_non_text_parquet_columns_are_rejected(tmp_path, column, place):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=place):
        documents(tmp_path / "a.parquet")


# -- compression

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
SKIPPABLE = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello"


@pytest.mark.parametrize("suffix", PACK)
def test_multiple_members_are_concatenated(tmp_path, suffix):
    pack = PACK[suffix]
    (tmp_path / f"A.TXT{suffix.upper()}").write_bytes(pack(b"the s") + pack("éa".encode()))
    assert documents(tmp_path / f"A.TXT{suffix.upper()}") == ["the séa"]
    half = lines(*[{"text": f"line {i}"} for i in range(3000)])
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(half) + pack(half))
    assert documents(tmp_path / f"a.jsonl{suffix}") == [f"line {i}" for i in range(3000)] * 2


@pytest.mark.parametrize("suffix", PACK)
def test_truncated_file_is_rejected(tmp_path, suffix):
    packed = PACK[suffix](b"the river bends twice, and the town is in the second bend. ")
    whole = PACK[suffix](b"a whole member first. ")
    for cut in (len(packed) // 2, len(packed) - 1):
        (tmp_path / f"a.txt{suffix}").write_bytes(whole + packed[:cut])
        with pytest.raises(UserError, match=f"a.txt{suffix}"):
            documents(tmp_path / f"a.txt{suffix}")


@pytest.mark.parametrize("suffix", PACK)
def test_damaged_second_member_is_rejected(tmp_path, suffix):
    text = b"the river bends twice, and the town is in the second bend. "
    first, second = PACK[suffix](text), PACK[suffix](text[::-1])
    path = tmp_path / f"a.txt{suffix}"
    for after in (b"garbage", *(damaged(second, at) for at in range(len(second)))):
        path.write_bytes(first + after)
        try:  # damage to gzip's time stamp, or to a zstd frame without checksum, may go unnoticed
            assert len("".join(documents(path))) == 2 * len(text)
        except UserError as error:
            assert str(path) in str(error)


def damaged(content, at):
    return content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :]


def test_zero_padding_between_xz_streams(tmp_path):
    # See the .xz format, section 2.2 (Stream Padding); `xz -d` accepts it.
    for pad in (4, 8, 200_000):
        packed = lzma.compress(b"the s") + bytes(pad) + lzma.compress("éa".encode()) + bytes(pad)
        (tmp_path / "a.txt.xz").write_bytes(packed)
        assert documents(tmp_path / "a.txt.xz") == ["the séa"]


def test_arrow_stream_must_be_complete_and_single(tmp_path):
    sink, table = io.BytesIO(), pa.table({"text": AB})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    whole = sink.getvalue()
    for suffix, pack in {"": bytes, **PACK}.items():
        path = tmp_path / f"a.arrow{suffix}"
        path.write_bytes(pack(whole))
        assert documents(path) == AB
        for content in (whole[:-8], whole + whole):
            path.write_bytes(pack(content))
            with pytest.raises(UserError, match=r"a\.arrow"):
                documents(path)


def test_parquet_checksum_detects_flipped_bit(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": AB})
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, path, write_page_checksum=True, **options)
    content = path.read_bytes()
    path.write_bytes(damaged(content, content.index(b"a river")))
    with pytest.raises(UserError, match=r"a\.parquet"):
        documents(path)


def test_zstd_skippable_frames_and_large_windows(tmp_path):
    pack = zstandard.ZstdCompressor()
    (tmp_path / "a.txt.zst").write_bytes(SKIPPABLE + pack.compress(b"text") + SKIPPABLE)
    assert documents(tmp_path / "a.txt.zst") == ["text"]
    # A header with a window of 2 GiB, as written by `zstd --long=31`.
    params = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False)
    long = zstandard.ZstdCompressor(compression_params=params).compressobj()
    (tmp_path / "b.txt.zst").write_bytes(long.compress(b"text") + long.flush())
    assert zstandard.frame_header_size((tmp_path / "b.txt.zst").read_bytes()) > 0
    assert documents(tmp_path / "b.txt.zst") == ["text"]


def test_file_format_from_name():
    found = lambda name: file_format(Path(name))
    assert found("a.v1.JSONL.GZ") == ".jsonl" and found("notes.md.bz2") == ".txt"
    assert found("a.gz") is None and found("a.png") is None and found("a.txt.png") is None


# -- files that failed in earlier versions

STORIES = [f"Story {i}. " for i in range(30)]


@pytest.mark.skipif(not SHARED.parent.joinpath("faults/data").exists(), reason="shared/ is absent")
def test_files_that_failed_in_earlier_versions():
    folder = SHARED.parent / "faults/data"
    line = "The river bends twice before it meets the sea, and the town sits in the second bend. "
    for name in (
        *("binary", "dict", "dotted", "large", "struct", "view"),
        *("columns_id_first.json", "columns_text_first.json", "lines.json", "wrapped_meta.json"),
        "jsonlines.jsonlines",
    ):
        path = folder / (name if "." in name else f"{name}.parquet")
        assert documents(path) == [story + line for story in STORIES], name
    halves = [f"First half {i}, second half {i}" for i in range(30)]
    assert documents(folder / "semicolon.csv") == documents(folder / "tabs.csv") == halves
    for name in ("long31.txt.zst", "skippable.txt.zst", "upper.TXT.GZ"):
        assert documents(folder / name) == [line * 20]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(
        [f"a{kind}{packed}" for kind in sorted(_READERS) for packed in ("", ".gz", ".zst")]
    ),
    start=st.sampled_from(
        [b"", codecs.BOM_UTF16_LE, b'{"text":', b"id,text\n", b"PAR1", SKIPPABLE]
    ),
    content=st.binary(max_size=40),
)
def test_random_content_is_read_or_rejected(tmp_path_factory, name, start, content):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(start + content)
    try:
        assert all(isinstance(document, str) for document in documents(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
