"""`python -m gpt2_jax.evaluate.sample`, as a person would use it."""

import json

import jax
import pytest

from gpt2_jax import config as configs
from gpt2_jax.interop.importing import import_model
from gpt2_jax.model.structure import structure
from gpt2_jax.train.checkpoint import save_params
from tests import tools
from tests.interop import checkpoints

MODULE = ("-m", "gpt2_jax.evaluate.sample")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of bytes that says `ababab…`: the embedding of each letter asks for the other."""
    config = tools.tiny(model__vocab_size=257, model__n_positions=32, data__seq_len=32)
    config.model.tie_head = False
    model = structure(config.model)
    params = jax.tree.map(lambda x: 0 * x, model.init(jax.random.key(0)))
    params["ln_f"]["gain"] += 1
    for i, (letter, other) in enumerate(((b"a", b"b"), (b"b", b"a"))):
        params["wte"] = params["wte"].at[letter[0], i].set(10.0)
        params["head"] = params["head"].at[other[0], i].set(10.0)
    folder = tmp_path_factory.mktemp("command") / "run"
    folder.mkdir()
    (folder / "config.json").write_text(configs.to_json(config))
    save_params(folder / "weights", params)
    return folder


def sample(workdir, tmp_path, *flags):
    done = tools.run(*MODULE, f"--workdir={workdir}", *flags, tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_text_goes_on_from_its_prompt_past_the_positions(workdir, tmp_path):
    how = ("--prompt=a", "--max_new_tokens=50", "--temperature=0")
    assert sample(workdir, tmp_path, *how) == "ab" * 25 + "a\n"
    assert sample(workdir, tmp_path, *how, "--stream") == "ab" * 25 + "a\n"


def test_prompts_of_a_file_come_back_as_json_lines(workdir, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"a"\n{"prompt": "aab"}\n')
    out = sample(
        workdir, tmp_path, f"--batch_file={prompts}", "--temperature=0", "--stop=aba", "--stop=xx"
    )
    assert [json.loads(line) for line in out.splitlines()] == [
        {"prompt": "a", "text": "b"},
        {"prompt": "aab", "text": ""},
    ]


def test_the_next_tokens_are_shown_with_their_probabilities(workdir, tmp_path):
    first, *_ = sample(workdir, tmp_path, "--prompt=a", "--show_top=3").splitlines()
    probability, number, text = first.split()
    assert float(probability) > 0.9 and (number, text) == ("98", "'b'")


def test_a_model_without_a_tokenizer_goes_on_from_ids(tmp_path):
    import_model(str(checkpoints.write(tmp_path / "theirs")), str(tmp_path / "run"))
    out = sample(tmp_path / "run", tmp_path, "--prompt=1 2", "--max_new_tokens=4")
    assert out.startswith("1 2 ") and len(out.split()) == 6


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stream", "--num_samples=2"], "--stream shows one text"),
        (["--top_p=0"], "--top_p=0.0 must be above 0"),
        (["--batch_file=nowhere"], "--batch_file=nowhere cannot be read"),
        (["--step=3"], "has no checkpoint of step 3; there are: none"),
    ],
)
def test_mistakes_are_one_line(workdir, tmp_path, flags, says):
    done = tools.run(*MODULE, f"--workdir={workdir}", *flags, tmp=tmp_path)
    assert says in tools.one_line_error(done)
