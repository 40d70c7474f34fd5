"""A run saves its tokenizer file and never uses a different one."""

import json
import shutil

import pytest

from gpt2_jax import config as configs
from gpt2_jax.data.dataset import open_dataset
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.train.pretrained import PretrainedSource, adopt_model
from gpt2_jax.train.storage.rundir import RunDirectory
from tests import tools
from tests.data import tokenizers

MINE, OTHER = tokenizers.bpe(), tokenizers.bpe(ends=("</s>", "<|endoftext|>"))


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def start_run(config, during_start=lambda: None):
    """Starts a run as training does, up to the first step."""
    directory = RunDirectory("run")
    directory.lock()
    directory.check_config(config)
    corpus, tokenizer = open_dataset(
        config.data.source, None, directory.tokenizer_for(config), config.data.val_fraction
    )
    directory.check_data(corpus, tokenizer, config.data.source)
    during_start()
    notes = directory.claim(config, corpus, tokenizer)
    assert all("data.tokenizer=t.json" in line for line in notes)
    directory.notes = notes
    directory.describe(config, {}, 0)
    directory.unlock()
    return directory


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config with a relative tokenizer path, and its run in the working directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.json", MINE)
    (tmp_path / "text.txt").write_text("the river bends the rivers bend " * 40)
    config = tools.tiny(data__source=str(tmp_path / "text.txt"), model__vocab_size=30)
    config = configs.replace(config, {"data.tokenizer": "t.json"})
    start_run(config)
    return config


def ids(directory):
    name = directory.read_config().data.tokenizer
    return load_tokenizer(name).encode(["the river"])[0].tolist()


def test_other_file_with_the_same_name_is_not_used(config, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "elsewhere" / "t.json", OTHER)
    assert ids(RunDirectory(str(tmp_path / "run"))) == [13, 16, 17]


@pytest.mark.parametrize("now", ["overwritten", "gone", "absolute"])
def test_run_continues_with_its_saved_tokenizer(config, tmp_path, now):
    """Regardless of changes to the original file, and under another path of the same file."""
    if now == "overwritten":
        write(tmp_path / "t.json", OTHER)
    elif now == "gone":
        (tmp_path / "t.json").unlink()
    else:
        config = configs.replace(config, {"data.tokenizer": str(tmp_path / "t.json")})
    directory = start_run(config)
    assert ids(directory) == [13, 16, 17]
    assert len(directory.notes) == (now == "overwritten")
    assert configs.from_json(tmp_path / "run" / "config.json") == config


def test_run_does_not_continue_with_another_tokenizer(config, tmp_path):
    write(tmp_path / "other.json", OTHER)
    config = configs.replace(config, {"data.tokenizer": "other.json"})
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        start_run(config)
    assert ids(RunDirectory("run")) == [13, 16, 17]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_changed_or_missing_saved_tokenizer_is_rejected(config, tmp_path, damage):
    (tmp_path / "run" / "tokenizer.json").unlink()
    if damage == "changed":
        write(tmp_path / "run" / "tokenizer.json", OTHER)
    assert ids(RunDirectory("run")) == [13, 16, 17]  # from the original file
    (tmp_path / "t.json").unlink()
    with pytest.raises(UserError, match=r"run/tokenizer\.json"):
        RunDirectory("run").read_config()


def test_moved_run_uses_its_saved_tokenizer(config, tmp_path):
    (tmp_path / "t.json").unlink()
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert ids(RunDirectory("moved")) == [13, 16, 17]


def test_saved_tokenizer_is_the_one_used_for_the_corpus(config, tmp_path):
    """Even if the file changes while the run starts."""
    shutil.rmtree(tmp_path / "run")
    directory = start_run(config, during_start=lambda: write(tmp_path / "t.json", OTHER))
    assert ids(directory) == [13, 16, 17]


def test_finetuning_accepts_the_same_tokenizer_at_another_path(config, tmp_path):
    """The same file at another path is accepted; another file is rejected."""
    source = PretrainedSource(tmp_path, RunDirectory("run").read_config(), "run@0")
    adopted = adopt_model(config, source, lambda line: None)
    assert adopted.data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    write(tmp_path / "t.json", OTHER)
    with pytest.raises(UserError, match=r"data\.tokenizer"):
        adopt_model(config, source, lambda line: None)
