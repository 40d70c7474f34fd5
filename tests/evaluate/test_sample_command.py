"""The `gpt2-jax sample` command."""

import json

import jax
import pytest

from gpt2_jax import config as configs
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from tests import tools
from tests.interop import checkpoints

MODULE = ("-m", "gpt2_jax", "sample")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A byte-level run that generates `ababab…`: each letter's embedding predicts the other."""
    sizes = {"model.vocab_size": 257, "model.n_positions": 32, "data.seq_len": 32}
    config = tools.tiny(**sizes, model__tie_head=False)
    model = define_model(config.model, config.placement)
    params = jax.tree.map(lambda x: 0 * x, model.init(jax.random.key(0)))
    params["ln_f"]["gain"] += 1
    for i, (letter, other) in enumerate(((b"a", b"b"), (b"b", b"a"))):
        params["embedding"]["wte"] = params["embedding"]["wte"].at[letter[0], i].set(10.0)
        params["head"] = params["head"].at[other[0], i].set(10.0)
    folder = tmp_path_factory.mktemp("command") / "run"
    folder.mkdir()
    (folder / "config.json").write_text(configs.to_json(config))
    save_params(folder / "weights", params)
    return folder


def sample(workdir, tmp_path, *flags, **environment):
    done = tools.run(*MODULE, f"--workdir={workdir}", *flags, tmp=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_text_continues_its_prompt_past_the_window(workdir, tmp_path):
    how = ("--prompt=a", "--max_new_tokens=50", "--temperature=0")
    assert sample(workdir, tmp_path, *how) == "ab" * 25 + "a\n"
    assert sample(workdir, tmp_path, *how, "--stream") == "ab" * 25 + "a\n"


def test_prompts_of_a_file_are_answered_as_json_lines(workdir, tmp_path):
    """In UTF-8, even in an ASCII locale."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a"\n{"prompt": "aab"}\n"\u00e9\u2028a"\n', encoding="utf-8")
    flags = (f"--batch_file={prompts}", "--temperature=0", "--stop=aba", "--stop=\u00e9")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = sample(workdir, tmp_path, *flags, **ascii_only)
    assert [json.loads(line) for line in out.split("\n")[:-1]] == [
        {"prompt": "a", "text": "b"},
        {"prompt": "aab", "text": ""},
        {"prompt": "\u00e9\u2028a", "text": "b"},
    ]


def test_beam_search_prints_the_best_texts(workdir, tmp_path):
    """Almost all probability is on `baba`; texts end where the window is full."""
    out = sample(workdir, tmp_path, "--prompt=a", "--beam=3", "--max_new_tokens=4")
    assert out == "ababa\n"
    flags = ("--prompt=a", "--beam=3", "--num_samples=2", "--max_new_tokens=4", "--stop=baba")
    first, second = sample(workdir, tmp_path, *flags).split("--- sample 2 ---\n")
    assert first == "--- sample 1 ---\na\n" and second != "a\n"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--beam=2", "--temperature=0.5"], "--temperature has no effect with --beam"),
        (["--beam=2", "--stream"], "--stream has no effect with --beam"),
        (["--beam=2", "--num_samples=3"], "--num_samples=3 must be at most --beam=2"),
        (["--length_penalty=2"], "--length_penalty is for beam search"),
        (["--beam=2", "--length_penalty=99"], "length_penalty=99.0 must be from -10 to 10"),
    ],
)
def test_flags_that_do_not_fit_beam_search_are_refused(workdir, tmp_path, flags, line):
    done = tools.run(*MODULE, f"--workdir={workdir}", *flags, tmp=tmp_path)
    assert tools.one_line_error(done).startswith(f"error: {line}")


NOTEBOOK = """
import sys, jax
jax.devices()
from gpt2_jax.evaluate.sampling import GREEDY
from gpt2_jax.evaluate.text_generation import encode_prompts, open_generator, generate_texts
generator, tokenizer = open_generator(sys.argv[1])
print(generate_texts(generator, tokenizer, encode_prompts(tokenizer, ["a"]), 4, GREEDY))
"""


def test_run_can_be_opened_after_jax_was_used(workdir, tmp_path):
    done = tools.run("-c", NOTEBOOK, str(workdir), tmp=tmp_path)
    assert done.stdout == "['baba']\n", done.stderr


def test_next_tokens_are_shown_with_their_probabilities(workdir, tmp_path):
    first, *_ = sample(workdir, tmp_path, "--prompt=a", "--show_top=3").splitlines()
    probability, number, text = first.split()
    assert float(probability) > 0.9 and (number, text) == ("98", "'b'")


def test_model_without_a_tokenizer_continues_ids(tmp_path):
    import_model(str(checkpoints.write(tmp_path / "theirs")), str(tmp_path / "run"))
    out = sample(tmp_path / "run", tmp_path, "--prompt=1 2", "--max_new_tokens=4")
    assert out.startswith("1 2 ") and len(out.split()) == 6


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--show_top=3", "--num_samples=2"], "--show_top shows one text"),
        (["--stop=a", "--stop="], "--stop="),
        (["--prompt=a", "--batch_file=nowhere"], "--batch_file"),
        (["--step=3"], "has no checkpoint of step 3; there are: none"),
    ],
)
def test_errors_are_one_line(workdir, tmp_path, flags, says):
    done = tools.run(*MODULE, f"--workdir={workdir}", *flags, tmp=tmp_path)
    assert says in tools.one_line_error(done)
