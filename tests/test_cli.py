"""Command lines: every error is one line with exit code 2, before anything expensive."""

import os
import time

import pytest
from absl.flags import FlagValues
from ml_collections import config_flags

from gpt2_jax import cli
from gpt2_jax import config as configs
from gpt2_jax.errors import UserError
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
    for name, lines in CONFIG_FILES.items():
        (tmp / f"{name}.py").write_text("\n".join([*HEADER, *lines]))
    os.mkfifo(tmp / "pipe")
    (tmp / "flags").write_text(f"# a comment\n--flagfile={tmp}/flags\n--flagfile={tmp}/pipe\n")
    return tmp


def command(place, module, *flags):
    return run("-m", *module.split(), *flags, tmp=place)


HEADER = ["import sys", "from gpt2_jax import config as configs"]
CONFIG_FILES = {
    "nothing": ["def get_config(): pass"],
    "leaves": ["def get_config(): sys.exit(0)"],
    "leaves_at_once": ["sys.exit(0)"],
    "no_function": [],
    "pair": ["def get_config(): return configs.default(), 1"],
    "adds": [
        "def get_config():",
        "    config = configs.default().unlock()",
        "    config.model.mine = 3",
        "    return config",
    ],
    "lacks": [
        "def get_config():",
        "    config = configs.default().unlock()",
        "    del config.model['n_layer']",
        "    return config",
    ],
    "wrong_type": [
        "def get_config():",
        "    config = configs.default()",
        "    config.train.steps = True",
        "    return config",
    ],
    "old_name": [
        "def get_config():",
        "    config = configs.default()",
        "    config.model.norms = 'post'",
        "    return config",
    ],
    "old_name_read": [
        "def get_config():",
        "    config = configs.default()",
        "    return config if config.model.placement else None",
    ],
    "colors": ["def get_config(): raise ValueError('\\x1b[31mred\\nline')"],
    "prints": ["print('one')", "def get_config(): return print('two') or configs.default()"],
}
QUICK = "--config=configs/quickstart.py"

TRAIN_ERRORS = [
    (
        [QUICK, "--config.model.n_layers=3", "--workdir=W/a"],
        "--config.model.n_layers is not a known field; did you mean 'model.n_layer'?",
    ),
    (
        [QUICK, "--config.model.placement=deepnorm", "--workdir=W/a"],
        "--config.model.placement is not a known field; it is now 'placement.preset'",
    ),
    (
        [QUICK, "--config.trian.steps=3", "--workdir=W/a"],
        "--config.trian.steps is not a known field; did you mean 'train.steps'?",
    ),
    (
        [QUICK, "--config.train.steps=many", "--workdir=W/a"],
        "config.train.steps",
    ),
    (["--config.train.steps=3", "--workdir=W/a"], "pass --config=FILE before it"),
    (["--workdir=W/a"], "pass --config, for example --config=configs/quickstart.py"),
    (["--config=W/name.py", "--workdir=W/a"], "NameError: name 'undefined' is not defined"),
    (["--config=W/dict.py", "--workdir=W/a"], "dict.py: {} is not a ConfigDict"),
    ([QUICK + ":x", "--workdir=W/a"], "TypeError: get_config() takes 0 positional arguments"),
    ([QUICK, "--workdir=W/file/below"], "cannot write --workdir="),
    pytest.param(
        [QUICK, "--workdir=/proc/run"],
        "cannot write --workdir=/proc/run",
        marks=pytest.mark.skipif(not os.path.isdir("/proc"), reason="this system has no /proc"),
    ),
    ([QUICK, "--worksdir=W/a"], "--worksdir is not a known flag; did you mean 'workdir'?"),
    ([QUICK], "pass --workdir, for example --workdir=runs/quickstart"),
    ([QUICK, "--workdir=W/a", "extra"], "'extra' is not a flag; flags look like --name=value"),
    (["--config=configs/nowhere.py", "--workdir=W/a"], "configs/nowhere.py"),
    (
        ["--config=nerr", "--workdir=W/a"],
        "--config=nerr is neither a file nor a shipped config; did you mean 'ner'?",
    ),
    (["--config=W/broken.py", "--workdir=W/a"], "broken.py"),
    (
        ["--config=configs/gpt2.py:small", "--workdir=W/a"],
        "configs/gpt2.py: 'small' is not a size; choose one of 124m, 1558m, 350m, 774m",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.model.n_head=3"],
        "model.n_head=3 does not divide model.n_embd=128; choose one of 1, 2, 4, 8, 16, 32, 64",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.data.source=W/nowhere*.txt"],
        "nowhere*.txt matches no file",
    ),
    ([QUICK, "--workdir=W/a", "--config.data.source=W/empty.txt"], "empty.txt is empty"),
    ([QUICK, "--workdir=W/a", "--config.data.source=W/binary.txt"], "binary.txt is binary"),
    (
        [QUICK, "--workdir=W/a", "--config.data.source=nope://bucket/*.txt"],
        "source nope://bucket/*.txt is not a valid URL: Protocol not known: nope",
    ),
    (
        [QUICK, "--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run is in object storage, which has no locks and cannot rename",
    ),
    ([QUICK, "--workdir=W/file"], "/file is"),
    (
        [QUICK, "--workdir=W/strange"],
        "strange is not empty and contains no run (thesis.tex); choose another",
    ),
    (
        [QUICK, "--workdir=W/a", "--config.data.tokenizer=gpt3"],
        "data.tokenizer=gpt3: No such file or directory; set it to `bytes`, `gpt2`",
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
        ["--config=ner", "--workdir=W/b", "--config.train.steps=30"],
        "train.steps=30 has no effect with train.epochs=12; change train.epochs instead, or unset "
        "it with --config.train.epochs=None",
    ),
    (
        [QUICK, "--workdir=W/b", "--config.data.source=W/text.txt", "--config.data.seq_len=4000",
         "--config.model.n_positions=4000"],
        "the training text has 4,500 tokens, too few for windows of data.seq_len=4000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "line"), TRAIN_ERRORS)
def test_errors_are_one_line(place, flags, line):
    flags = [flag.replace("W/", f"{place}/") for flag in flags]
    started = time.monotonic()
    got = one_line_error(command(place, "train", *flags))
    assert line in got, got
    assert time.monotonic() - started < 30
    assert (place / "strange" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "pass --workdir, the directory of a run"),
        (["--workdir=W/nowhere"], "config.json does not exist: is this a run's work directory?"),
        (["--workdir=W/nowhere", "--stride=x"], "stride"),
        (
            ["--workdir=W/nowhere", "--config.eval.beam=2"],
            "--config.eval.beam is not a known flag: this command takes no --config; did you mean "
            "'beam'?",
        ),
        (
            ["--workdir=W/nowhere", "--config.train.steps=2"],
            "--config.train.steps is not a known flag: this command takes no --config",
        ),
        (
            ["--workdir=W/nowhere", "--batch=2"],
            "--batch is not a known flag; choose one of beam, data, flagfile, help, int8, json, ",
        ),
    ],
)
def test_eval_errors_name_the_missing_flag(place, flags, line):
    flags = [flag.replace("W/", f"{place}/") for flag in flags]
    assert line in one_line_error(command(place, "eval", *flags))
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("module", ["gpt2_jax", "gpt2_jax.cli.main"])
def test_console_script_is_also_a_module(place, module):
    done = run("-m", module, tmp=place)
    assert done.returncode == 2 and done.stdout.startswith("usage: gpt2-jax COMMAND")


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull"])
def test_help_shows_flags_and_fields(place, word):
    done = command(place, "train", QUICK, word)
    assert done.returncode == 0 and not done.stderr
    assert "\n  --workdir: " in done.stdout and "\n  --config: " in done.stdout
    assert all(f"--config.{name}:" in done.stdout for name in configs.FIELDS)
    done = command(place, "gpt2_jax import", word)
    assert done.returncode == 0 and "\n  --model: " in done.stdout and "--config" not in done.stdout


def test_fields_with_several_strings_accept_commas_and_equal_signs(place):
    """As in the fine-tuning guide; the run ends because the source does not exist."""
    done = command(
        place,
        "train",
        "--config=configs/finetune.py",
        "--config.optimizer.frozen=wpe,blocks.0",
        "--config.optimizer.lr_multipliers=wte=0.1,blocks.*.mlp=0.5",
        "--config.track.wandb.tags=a,b-c",
        "--config.data.source=nowhere.txt",
        f"--workdir={place}/words",
    )
    assert "nowhere.txt matches no file" in one_line_error(done)


def test_none_unsets_a_field():
    """Numbers, strings and booleans, if they are unset by default."""
    changes = ("train.epochs", "train.init_from", "data.columns", "head.transform")
    set_first = [f"--config.{name}={value}" for name, value in zip(changes, "2aa1", strict=True)]

    def read(*args):
        argv = ["train", "--config=configs/ner.py", *args]
        values = FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        values(argv)
        config = configs.freeze(values.config)
        return [configs.value_of(config, name) for name in changes]

    assert read(*set_first) == [2.0, "a", "a", True] and cli.UNSET == "None"
    assert read(*set_first, *(f"--config.{name}={cli.UNSET}" for name in changes)) == [None] * 4
    with pytest.raises(UserError, match=r"train\.steps=None must be an integer"):
        read("--config.train.steps=None")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "None"),
        ("leaves", "leaves.py"),
        ("leaves_at_once", "leaves_at_once.py"),
        ("no_function", "get_config"),
        ("pair", "not a ConfigDict"),
        ("adds", "model.mine"),
        ("lacks", "model.n_layer"),
        ("wrong_type", "train.steps=True"),
        ("old_name", "placement.norm_sites"),
        ("old_name_read", "placement.preset"),
        ("colors", r"\x1b[31mred line"),
    ],
)
def test_config_file_must_return_a_config(place, name, message):
    flags = [f"--config={place}/{name}.py", f"--workdir={place}/refused"]
    assert message in one_line_error(command(place, "train", *flags))
    assert not (place / "refused").exists()


def test_output_of_a_config_file_goes_to_stderr(place):
    flags = [f"--config={place}/prints.py", "--config.data.source=nowhere.txt"]
    done = command(place, "train", *flags, f"--workdir={place}/prints")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.split()[:2] == ["one", "two"]


SAMPLE = "gpt2_jax sample"


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("train", [QUICK, "--config.seed=18446744073709551616", "--workdir=W/v"], "seed="),
        ("train", [QUICK, "--config.train.steps=1e12", "--workdir=W/v"], "config.train.steps"),
        ("train", [QUICK, "--config.optimizer.peak_lr=nan", "--workdir=W/v"], "optimizer.peak_lr"),
        ("train", [QUICK, "--config.model.n_embd=1000000007", "--workdir=W/v"], "model.n_embd"),
        (
            "train",
            [QUICK, "--config.placement.skip_scale=9**9**9**9", "--workdir=W/v"],
            "skip_scale",
        ),
        ("train", [QUICK, "--config.data.source=W/pipe", "--workdir=W/v"], "data.source"),
        ("train", [QUICK, "--config.data.tokenizer=/dev/zero", "--workdir=W/v"], "data.tokenizer"),
        ("train", [QUICK, "--workdir=W/" + "v" * 256], "--workdir"),
        ("train", [QUICK, "--workdir=W/\x1b[31m"], r"\x1b[31m"),
        ("train", [QUICK, "--workdir=W/\udcff"], "UTF-8"),
        ("train", [QUICK, "--wokdir=\x1b[31m", "\x1b[2J"], "--wokdir"),
        ("train", ["--flagfile=W/nowhere"], "flagfile"),
        ("train", ["--flagfile=W/pipe"], "--flagfile"),
        ("eval", ["--flagfile", "W/pipe"], "--flagfile"),
        ("eval", ["--flagfile=W/flags"], "--flagfile"),
        ("train", [QUICK, "--flagfile=W/binary.txt"], "--flagfile"),
        ("eval", ["--workdir=W/v", "--stride=0"], "stride"),
        ("eval", ["--workdir=W/v", "--limit=99999999999"], "limit"),
        (SAMPLE, ["--workdir=W/v", "--max_new_tokens=10000000000000"], "max_new_tokens"),
        (SAMPLE, ["--workdir=W/v", "--temperature=nan"], "--temperature"),
        (SAMPLE, ["--workdir=W/v", "--temperature=1e-38"], "--temperature"),
        (SAMPLE, ["--workdir=W/v", "--temperature=inf"], "--temperature"),
        (SAMPLE, ["--workdir=W/v", "--stop="], "--stop"),
        (SAMPLE, ["--workdir=W/v", "--prompt=", "--batch_file=W/text.txt"], "--batch_file"),
        (SAMPLE, ["--workdir=W/v", "--batch_file=W/pipe"], "--batch_file"),
    ],
)
def test_value_out_of_bounds_is_refused_by_name(place, module, flags, message):
    flags = [flag.replace("W/", f"{place}/") for flag in flags]
    line = one_line_error(command(place, module, *flags))
    assert message in line and "\x1b" not in line
    assert not (place / "v").exists()
