"""Command lines: every mistake ends in one line and exit code 2, before anything expensive."""

import time

import pytest

from tests.tools import make_text, one_line_error, run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    (tmp / "text.txt").write_text(make_text(5000))
    (tmp / "empty.txt").write_text("")
    (tmp / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp / "file").write_text("not a directory")
    (tmp / "strange").mkdir()
    (tmp / "strange" / "thesis.tex").write_text("precious")
    (tmp / "name.py").write_text("undefined\n")
    (tmp / "dict.py").write_text("def get_config():\n    return {}\n")
    (tmp / "broken.py").write_text("def get_config(:\n")
    return tmp


QUICK = "--config=configs/quickstart.py"

TRAIN_ERRORS = [
    (
        [QUICK, "--config.model.n_layers=3", "--workdir=W/a"],
        "--config.model.n_layers is no field; did you mean 'model.n_layer'?",
    ),
    (
        [QUICK, "--config.trian.steps=3", "--workdir=W/a"],
        "--config.trian.steps is no field; did you mean 'train.steps'?",
    ),
    (
        [QUICK, "--config.train.steps=many", "--workdir=W/a"],
        "config.train.steps",
    ),
    (["--config.train.steps=3", "--workdir=W/a"], "give --config=FILE before it"),
    (["--workdir=W/a"], "give --config, for example --config=configs/quickstart.py"),
    (["--config=W/name.py", "--workdir=W/a"], "NameError: name 'undefined' is not defined"),
    (["--config=W/dict.py", "--workdir=W/a"], "dict.py: {} is not a ConfigDict"),
    ([QUICK + ":x", "--workdir=W/a"], "TypeError: get_config() takes 0 positional arguments"),
    ([QUICK, "--workdir=W/file/below"], "cannot write --workdir="),
    ([QUICK, "--workdir=/proc/run"], "cannot write --workdir=/proc/run"),
    ([QUICK, "--worksdir=W/a"], "--worksdir is no flag; did you mean 'workdir'?"),
    ([QUICK], "give --workdir, for example --workdir=runs/quickstart"),
    ([QUICK, "--workdir=W/a", "extra"], "'extra' is no flag; flags look like --name=value"),
    (["--config=configs/nowhere.py", "--workdir=W/a"], "configs/nowhere.py"),
    (["--config=W/broken.py", "--workdir=W/a"], "broken.py"),
    (
        ["--config=configs/gpt2.py:small", "--workdir=W/a"],
        "configs/gpt2.py: 'small' is no size; there are: 124m, 1558m, 350m, 774m",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.model.n_head=3"],
        "model.n_head=3 does not divide model.n_embd=128; choose one of 1, 2, 4, 8, 16, 32, 64",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.data.source=W/nowhere*.txt"],
        "matches no file; give `stdlib`, a path or glob",
    ),
    ([QUICK, "--workdir=W/a", "--config.data.source=W/empty.txt"], "empty.txt is empty"),
    ([QUICK, "--workdir=W/a", "--config.data.source=W/binary.txt"], "binary.txt is binary"),
    (
        [QUICK, "--workdir=W/a", "--config.data.source=gs://bucket/*.txt"],
        "is a remote path; copy it to a local disk",
    ),
    (
        [QUICK, "--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run is a remote path; metrics and checkpoints need a local or "
        "mounted file system",
    ),
    ([QUICK, "--workdir=W/file"], "file is a file; choose another"),
    (
        [QUICK, "--workdir=W/strange"],
        "strange is not empty and holds no run (thesis.tex); choose another",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.data.tokenizer=gpt3"],
        "data.tokenizer=gpt3: No such file or directory; give `bytes`, `gpt2`",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.model.vocab_size=100"],
        "model.vocab_size=100 is smaller than the 257 tokens of data.tokenizer=bytes",
    ),
    (
        [QUICK, "--workdir=W/small", "--config.data.source=W/text.txt",
         "--config.data.seq_len=128", "--config.model.n_positions=128",
         "--config.mesh.data=4", "--config.train.batch_size=6", "--config.train.accumulation=1"],
        "mesh.data=4 does not divide the 6 sequences of a micro-batch",
    ),
    (
        [QUICK, "--workdir=W/b", "--config.data.source=W/text.txt", "--config.data.seq_len=4000",
         "--config.model.n_positions=4000"],
        "the training text has 4500 tokens, too few for windows of data.seq_len=4000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), TRAIN_ERRORS)
def test_a_mistake_ends_in_one_line(place, flags, line):
    flags = [flag.replace("W/", f"{place}/") for flag in flags]
    started = time.monotonic()
    got = one_line_error(run("train.py", *flags, tmp=place))
    assert line in got, got
    assert time.monotonic() - started < 30
    assert (place / "strange" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "give --workdir, the directory of a run"),
        (["--workdir=W/nowhere"], "config.json does not exist: is this a run's work directory?"),
        (["--workdir=W/nowhere", "--stride=x"], "stride"),
    ],
)
def test_eval_says_what_it_needs(place, flags, line):
    flags = [flag.replace("W/", f"{place}/") for flag in flags]
    assert line in one_line_error(run("eval.py", *flags, tmp=place))
    assert not (place / "nowhere").exists()


def test_help_shows_the_flags(place):
    done = run("train.py", "--help", tmp=place)
    assert "--workdir" in done.stdout and "--config" in done.stdout


def test_fields_of_several_strings_take_commas_and_equal_signs(place):
    """The README's own words; the source that is not there is what the run ends at."""
    done = run(
        "train.py",
        "--config=configs/finetune.py",
        "--config.optimizer.frozen=wpe,blocks.0",
        "--config.optimizer.lr_multipliers=wte=0.1,blocks.*.mlp=0.5",
        "--config.track.wandb.tags=a,b-c",
        "--config.data.source=nowhere.txt",
        f"--workdir={place}/words",
        tmp=place,
    )
    assert "nowhere.txt matches no file" in one_line_error(done)
