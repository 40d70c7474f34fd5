"""A run keeps the tokenizer file that it began with, and nothing else is used in its place."""

import json
import shutil

import pytest

from gpt2_jax import config as configs
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.train.origin import Origin, adopt
from gpt2_jax.train.rundir import RunDirectory
from tests import tools
from tests.data import tokenizers

MINE, OTHER = tokenizers.bpe(), tokenizers.bpe(ends=("</s>", "<|endoftext|>"))


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def begin(config, meanwhile=lambda: None):
    """Starts a run as training does, up to the first step."""
    directory = RunDirectory("run")
    directory.lock()
    directory.check_config(config)
    corpus, tokenizer = open_corpus(
        config.data.source, None, directory.tokenizer_for(config), config.data.val_fraction
    )
    directory.check_data(corpus, tokenizer, config.data.source)
    meanwhile()
    said = directory.claim(config, corpus, tokenizer)
    assert all("data.tokenizer=t.json" in line for line in said)
    directory.said = said
    directory.describe(config, {}, 0)
    directory.unlock()
    return directory


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config with a relative tokenizer, whose run has begun in the working directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.json", MINE)
    (tmp_path / "text.txt").write_text("the river bends the rivers bend " * 40)
    config = tools.tiny(data__source=str(tmp_path / "text.txt"), model__vocab_size=30)
    config.data.tokenizer = "t.json"
    begin(config)
    return config


def ids(directory):
    name = directory.read_config().data.tokenizer
    return load_tokenizer(name).encode(["the river"])[0].tolist()


def test_another_file_of_that_name_is_not_used(config, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "elsewhere" / "t.json", OTHER)
    assert ids(RunDirectory(str(tmp_path / "run"))) == [13, 16, 17]


@pytest.mark.parametrize("now", ["overwritten", "gone", "absolute"])
def test_a_run_continues_with_its_copy(config, tmp_path, now):
    """Under the same name, whatever the file is now, or under another name of the same file."""
    if now == "overwritten":
        write(tmp_path / "t.json", OTHER)
    elif now == "gone":
        (tmp_path / "t.json").unlink()
    else:
        config.data.tokenizer = str(tmp_path / "t.json")
    directory = begin(config)
    assert ids(directory) == [13, 16, 17]
    assert len(directory.said) == (now == "overwritten")
    assert configs.from_json(tmp_path / "run" / "config.json") == config


def test_another_tokenizer_does_not_continue_a_run(config, tmp_path):
    write(tmp_path / "other.json", OTHER)
    config.data.tokenizer = "other.json"
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        begin(config)
    assert ids(RunDirectory("run")) == [13, 16, 17]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_copy_that_is_not_the_runs_is_refused(config, tmp_path, damage):
    (tmp_path / "run" / "tokenizer.json").unlink()
    if damage == "changed":
        write(tmp_path / "run" / "tokenizer.json", OTHER)
    assert ids(RunDirectory("run")) == [13, 16, 17]  # the file that it was copied from is there
    (tmp_path / "t.json").unlink()
    with pytest.raises(UserError, match=r"run/tokenizer\.json"):
        RunDirectory("run").read_config()


def test_a_run_is_moved_with_its_tokenizer(config, tmp_path):
    (tmp_path / "t.json").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert ids(RunDirectory("moved")) == [13, 16, 17]


def test_the_copy_is_what_the_text_was_tokenized_with(config, tmp_path):
    """Also where the file changes while the run starts."""
    shutil.rmtree(tmp_path / "run")
    directory = begin(config, meanwhile=lambda: write(tmp_path / "t.json", OTHER))
    assert ids(directory) == [13, 16, 17]


def test_finetuning_may_name_the_origins_tokenizer_by_another_path(config, tmp_path):
    """The same file under another name is the same tokenizer; another file is refused."""
    origin = Origin(tmp_path, RunDirectory("run").read_config(), "run@0")
    asked = config.copy_and_resolve_references()
    adopted = adopt(asked, origin, lambda line: None)
    assert adopted.data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    write(tmp_path / "t.json", OTHER)
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        adopt(asked, origin, lambda line: None)
