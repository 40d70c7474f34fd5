"""Conversion of local files for harness tasks to folders that `datasets` reads."""

import io
import json
import os
import tarfile

import pytest

from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.task_data import LOCAL_TASKS, LocalTask, local_folder, wikitext_pages
from tests import tools

ARTICLE = " = First = \n \n Text = here = it is . \n = = Part = = \n More . \n"


def test_articles_begin_at_first_level_headings():
    other = ARTICLE.replace("First", "Second")
    assert wikitext_pages(" \n" + ARTICLE + other) == [ARTICLE, other]
    short = ARTICLE.replace("First", "I")
    assert wikitext_pages(ARTICLE + short) == [ARTICLE, short] and wikitext_pages("text") == []


def test_folder_has_the_splits_that_the_task_requires(tmp_path):
    import datasets

    (tmp_path / "wikitext2_raw").mkdir()
    (tmp_path / "wikitext2_raw" / "t.raw").write_text(ARTICLE * 2)
    folder = local_folder(LocalTask.of("wikitext"), tmp_path)
    loaded = datasets.load_dataset(
        str(folder), "wikitext-2-raw-v1", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["test"]["page"] == [ARTICLE, ARTICLE]
    assert local_folder(LocalTask.of("wikitext"), tmp_path) == folder
    (tmp_path / "wikitext2_raw" / "t.raw").write_text(ARTICLE)
    assert local_folder(LocalTask.of("wikitext"), tmp_path) != folder


def test_task_without_local_data_is_named(tmp_path):
    with pytest.raises(UserError, match="no data for arc_easy, only for lambada_openai"):
        LocalTask.of("arc_easy")
    assert LocalTask.of("blimp_wh_island").kind == "blimp"
    with pytest.raises(UserError, match=r"has no blimp/\*\.tar\.xz for blimp"):
        local_folder(LocalTask.of("blimp"), tmp_path)


def packed(cut=None, **members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"data/{name}.jsonl")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()[:cut]


@pytest.mark.parametrize(
    ("task", "name", "content"),
    [
        ("lambada_openai", "lambada/a.jsonl", b""),
        ("lambada_openai", "lambada/a.jsonl", b'{"text": "a b"}\n{"te'),
        ("lambada_openai", "lambada/a.jsonl", b'{"text": "\xe9"}\n'),
        ("lambada_openai", "lambada/a.jsonl", None),  # a pipe
        ("hellaswag", "hellaswag/a.jsonl", b"[1]\n"),
        ("blimp", "blimp/a.tar.xz", b"no archive"),
        ("blimp", "blimp/a.tar.xz", packed(60, wh_island=b'{"a": 1}\n')),
        ("blimp", "blimp/a.tar.xz", packed(wh_island=b"\xe9\n")),
        ("blimp", "blimp/a.tar.xz", packed(wh_island=b"hello\n")),
        ("wikitext", "wikitext2_raw/a.raw", b"no heading\n"),
    ],
)
def test_damaged_file_is_named(tmp_path, task, name, content):
    path = tmp_path / name
    path.parent.mkdir()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=path.name) as caught:
        local_folder(LocalTask.of(task), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not tools.SHARED.exists(), reason="needs the published files")
def test_published_files_have_their_published_sizes():
    counts = {}
    for task in LOCAL_TASKS:
        files = sorted(local_folder(task, tools.SHARED).glob("*.jsonl"))
        lines = [path.read_text().splitlines() for path in files]
        json.loads(lines[0][0])
        counts[task.kind] = (len(files), sum(map(len, lines)))
    assert counts == {
        "lambada_openai": (1, 5153),
        "hellaswag": (1, 10042),
        "blimp": (67, 67000),
        "wikitext": (1, 62),
    }
