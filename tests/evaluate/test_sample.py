"""Sampling and eval.py's figures."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.evaluate.sample import generate, sample_text
from gpt2_jax.train import loop
from tests.tools import run, tiny, tiny_model
from tests.train.test_loop import config


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def greedy_by_hand(model, params, prompt, n):
    ids = list(prompt)
    forward = jax.jit(lambda tokens: model.bind(params)(tokens))
    for _ in range(n):
        padded = np.zeros((1, 12), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(forward(padded)[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def test_greedy_text_is_the_likeliest_of_the_full_pass(model):
    structure, params = model
    prompts = np.array([[1, 2, 3], [7, 0, 9]], np.int32)
    new = generate(structure, params, prompts, jax.random.key(0), n_new=9, temperature=0.0, top_k=5)
    assert new.shape == (2, 9)
    for row in range(2):
        assert new[row].tolist() == greedy_by_hand(structure, params, prompts[row].tolist(), 9)


def test_draws_follow_the_distribution_of_the_top_k(model):
    structure, params = model
    prompt = jnp.tile(jnp.array([[1, 2, 3]]), (4000, 1))
    drawn = generate(
        structure, params, prompt, jax.random.key(1), n_new=1, temperature=0.7, top_k=4
    )
    logits = structure.bind(params)(prompt[:1])[0, -1] / 0.7
    best = np.argsort(-logits)[:4]
    want = np.exp(logits[best]) / np.exp(logits[best]).sum()
    got = [(np.asarray(drawn)[:, 0] == i).mean() for i in best]
    assert sum(got) == pytest.approx(1.0)
    np.testing.assert_allclose(got, want, atol=0.03)


def test_the_seed_chooses_the_text_and_padding_is_never_drawn(model):
    structure, params = model
    text = lambda seed: generate(
        structure, params, jnp.zeros((64, 1), int), jax.random.key(seed), n_new=11,
        temperature=50.0, top_k=40,
    )  # fmt: skip
    assert (text(0) == text(0)).all() and (text(0) != text(1)).any()
    assert int(text(0).max()) == 10  # of 16 padded ids


def test_a_text_may_outgrow_the_positions(text_file):
    structure, params = tiny_model(model__vocab_size=257)
    tokenizer = load_tokenizer("bytes")

    def text(length, seed):
        made = tiny(**{"train.sample_tokens": length, "seed": seed, "model.vocab_size": 257})
        return sample_text(made, structure, params, tokenizer)

    assert text(50, seed=0) != text(50, seed=1)
    assert len(text(50, seed=0).encode(errors="ignore")) >= 30
    assert text(50, seed=0).encode().startswith(text(5, seed=0).encode()[:3])


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("eval") / "run"
    made = config(text_file, train__eval_tokens=None, train__steps=20)
    assert loop.train(made, str(workdir)) == 0
    return workdir


def test_eval_gives_the_figures_of_the_run(finished, tmp_path):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    done = run("eval.py", f"--workdir={finished}", "--json", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["step"] == 20 and result["tokens"] == 3999
    assert result["loss"] == pytest.approx(rows[-1]["val/loss"], rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(rows[-1]["val/bits_per_byte"], rel=1e-5)
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))


def test_eval_on_another_text_with_a_stride(finished, tmp_path):
    (tmp_path / "other.txt").write_text("the norm of the stream. " * 10)
    flags = (f"--workdir={finished}", f"--data={tmp_path}/other.txt", "--step=20", "--json")
    results = []
    for stride in ("--stride=12", "--stride=3"):
        done = run("eval.py", *flags, stride, tmp=tmp_path)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert [r["tokens"] for r in results] == [239, 239]
    assert results[0]["loss"] != results[1]["loss"]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--step=7", "has no checkpoint of step 7; there are: 20"),
        ("--stride=13", "--stride=13 must be from 1 to the run's seq_len=12"),
        ("--data=nowhere.txt", "nowhere.txt matches no file"),
    ],
)
def test_evals_mistakes_are_one_line(finished, tmp_path, flag, line):
    done = run("eval.py", f"--workdir={finished}", flag, tmp=tmp_path)
    assert done.returncode == 2 and line in done.stderr.splitlines()[-1]
