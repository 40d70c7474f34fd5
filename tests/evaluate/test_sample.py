"""Sampling, and the results of eval.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate import text_generation
from gpt2_jax.evaluate.generate import Generator, _generate
from gpt2_jax.evaluate.perplexity import as_lines, evaluate_run
from gpt2_jax.evaluate.sampling import GREEDY, SamplingParams, sample
from gpt2_jax.evaluate.text_generation import sample_text
from gpt2_jax.files import to_json
from gpt2_jax.train import loop
from tests.runs import config
from tests.tools import run, tiny, tiny_model


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


PROMPTS = [[1, 2, 3], [7, 0, 9, 9, 4], [5]]


@pytest.mark.parametrize("made", ["generate", "stream"])
def test_greedy_text_matches_full_forward_passes(model, made):
    """Prompts of three lengths in one batch have the same text as each alone."""
    model_def, params = model
    generator = Generator(model_def, params, step=0, window=12)
    if made == "generate":
        new = generator.generate(PROMPTS, 7, GREEDY)
    else:
        new = np.array(list(generator.stream(PROMPTS, 7, GREEDY))).T.tolist()
    assert new == [greedy_by_hand(model_def, params, prompt, 7) for prompt in PROMPTS]
    assert len({tuple(ids) for ids in new}) == 3


@pytest.mark.parametrize("choice", [SamplingParams(1.3, 0.9, 6, 0.9), SamplingParams()])
def test_streamed_text_equals_generated_text(model, choice):
    generator = Generator(*model, step=0, window=12, end=0)
    texts = generator.generate(PROMPTS, 30, choice, seed=3)
    columns = list(generator.stream(PROMPTS, 30, choice, seed=3))
    streamed = [[i for i in row if i is not None] for row in zip(*columns, strict=True)]
    assert streamed == texts != generator.generate(PROMPTS, 30, choice, seed=4)
    assert not any(0 in ids for ids in texts) and min(map(len, texts)) < 30


def test_rows_of_a_batch_are_independent(model):
    """In their samples, and if another row's text fills the window first."""
    generator = Generator(*model, step=0, window=12)
    together = generator.generate(PROMPTS, 20, SamplingParams(), seed=1)
    assert generator.generate(PROMPTS[:1], 20, SamplingParams(), seed=1) == together[:1]
    greedy = generator.generate(PROMPTS, 20, GREEDY)
    assert greedy == [generator.generate([prompt], 20, GREEDY)[0] for prompt in PROMPTS]
    same = generator.generate([[1, 2, 3]] * 3, 8, SamplingParams(), seed=1)
    assert same[0] != same[1]


def drawn(model, choice, prompt=(1, 2, 3), n=4000):
    """Returns how often each id is sampled after a prompt, and the logits."""
    model_def, params = model
    new = Generator(model_def, params, step=0, window=12).generate([prompt] * n, 1, choice, seed=1)
    logits = np.asarray(model_def.bind(params)(jnp.array([prompt]))[0, -1], np.float64)
    return np.bincount(np.array(new)[:, 0], minlength=16) / n, logits


def expected(logits, keep):
    p = np.where(keep, np.exp(logits - logits.max()), 0)
    return p / p.sum()


@pytest.mark.parametrize(
    "choice", [SamplingParams(temperature=0.7), SamplingParams(temperature=0.7, top_k=4)]
)
def test_samples_follow_the_top_k_distribution(model, choice):
    got, logits = drawn(model, choice)
    keep = logits >= np.sort(logits)[-(choice.top_k or 11)]
    np.testing.assert_allclose(got, expected(logits / 0.7, keep), atol=0.03)
    assert got[11:].sum() == 0  # padded to 16 ids


def test_samples_follow_the_nucleus_distribution(model):
    got, logits = drawn(model, SamplingParams(top_p=0.6))
    order = np.argsort(-logits)
    p = expected(logits, True)
    inside = order[: int(np.searchsorted(p[order].cumsum(), 0.6)) + 1]
    assert 1 < len(inside) < 10
    np.testing.assert_allclose(got, expected(logits, np.isin(np.arange(16), inside)), atol=0.03)


def test_repetition_penalty_makes_seen_ids_less_likely(model):
    got, logits = drawn(model, SamplingParams(repetition_penalty=10.0), prompt=(0, 2, 0))
    seen = np.isin(np.arange(16), [0, 2])
    changed = np.where(seen, np.where(logits > 0, logits / 10, logits * 10), logits)
    np.testing.assert_allclose(got, expected(changed, True), atol=0.03)
    assert np.abs(expected(changed, True) - expected(logits, True)).max() > 0.04


@pytest.mark.parametrize("temperature", [1e-38, 1e-300, 1e38, 1e300])
def test_extreme_temperatures_do_not_overflow(temperature):
    """The lowest choose the most likely id, the highest sample from all ids except the padding."""
    lowest = float(jnp.finfo(jnp.float32).min)
    logits = jnp.array([[3.0, -90.0, 80.0, lowest]])
    keys = jax.random.split(jax.random.key(0), 64)
    for choice in (
        SamplingParams(temperature=temperature),
        SamplingParams(temperature=temperature, top_p=0.9),
    ):
        drawn_B = sample(choice, jnp.repeat(logits, 64, 0), None, keys)
        assert set(drawn_B.tolist()) == ({2} if temperature < 1 else {0, 1, 2})


def test_logits_have_one_column_per_id_of_the_vocabulary(model):
    model_def, params = model
    logits = Generator(model_def, params, step=0, window=12).logits([[1, 2, 3], [4, 5, 6]])
    want = model_def.bind(params)(jnp.array([[1, 2, 3], [4, 5, 6]]))
    assert want.shape == (2, 3, 16) and logits.shape == (2, 3, 11)
    np.testing.assert_allclose(logits, want[..., :11], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", "a\x0cb\nc\u2028d\r\n\ne\x85\n", ["a\x0cb", "c\u2028d", "", "e\x85"]),
        ("p.txt", "\ufeffa\n\u00e9", ["a", "\u00e9"]),
        ("p.jsonl", '\ufeff"a\u2028b"\n\n{"prompt": "c"}\r\n', ["a\u2028b", "c"]),
        ("P.JSONL", '"a"\n', ["a"]),
        ("p.ndjson", '{"prompt": "a"}\n', ["a"]),
        ("prompts", '"a"\n', ['"a"']),
    ],
)
def test_only_line_feeds_separate_prompts(tmp_path, name, content, prompts):
    (tmp_path / name).write_bytes(content.encode())
    assert text_generation.read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"\n", b"[1]", b"[" * 100_000])
def test_file_without_prompts_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"p\.jsonl"):
        text_generation.read_prompts(tmp_path / "p.jsonl")


@pytest.mark.parametrize("name", ["p.json", "p.csv", "p.parquet"])
def test_prompt_file_of_another_format_is_refused(tmp_path, name):
    (tmp_path / name).write_text('["a", "b"]')
    with pytest.raises(UserError, match=f"--batch_file=.*{name}"):
        text_generation.read_prompts(tmp_path / name)


def test_prompt_with_half_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match="UTF-8"):
        text_generation.encode_prompts(load_tokenizer("bytes"), ["\ud800"])


def test_generation_past_the_window_continues_from_its_last_half(model):
    """When the window of 12 tokens is full, the last 6 are the next prompt."""
    model_def, params = model
    generator = Generator(model_def, params, step=0, window=12)
    prompt = [1, 2, 3, 4]
    first = greedy_by_hand(model_def, params, prompt, 8)
    second = greedy_by_hand(model_def, params, (prompt + first)[-6:], 6)
    third = greedy_by_hand(model_def, params, (first + second)[-6:], 3)
    assert generator.generate([prompt], 17, GREEDY) == [first + second + third]
    streamed = list(generator.stream([prompt], 17, GREEDY))
    assert [ids[0] for ids in streamed] == first + second + third
    long = list(range(11)) * 3  # fills the window: cut to its last half
    assert generator.generate([long], 3, GREEDY) == [
        greedy_by_hand(model_def, params, long[-6:], 3)
    ]


def test_next_token_distribution(model):
    model_def, params = model
    log_p = Generator(model_def, params, step=0, window=12).next_distribution([1, 2, 3])
    want = jax.nn.log_softmax(model_def.bind(params)(jnp.array([[1, 2, 3]]))[0, -1, :11])
    np.testing.assert_allclose(log_p, want, atol=1e-5)


def test_few_programs_are_compiled_for_many_lengths(model):
    generator = Generator(*model, step=0, window=12)
    before = _generate._cache_size()
    for n in range(1, 9):
        generator.generate([[1] * n, [2]], n, SamplingParams(temperature=0.123))
    assert _generate._cache_size() == before + 1


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (SamplingParams(temperature=-1), "--temperature=-1"),
        (SamplingParams(temperature=1e-38), "--temperature=1e-38"),
        (SamplingParams(top_p=0), "--top_p=0"),
        (SamplingParams(temperature=np.inf), "--temperature=inf"),
        (SamplingParams(temperature=np.nan), "--temperature=nan"),
        (SamplingParams(repetition_penalty=0), "--repetition_penalty=0"),
        (SamplingParams(repetition_penalty=np.inf), "--repetition_penalty=inf"),
    ],
)
def test_sampling_params_out_of_range_are_refused(choice, line):
    with pytest.raises(UserError, match=line):
        choice.check()


def test_many_prompts_are_processed_in_batches(model, monkeypatch):
    generator, tokenizer = Generator(*model, step=0, window=12), load_tokenizer("ids:11")
    whole = text_generation.generate_texts(generator, tokenizer, PROMPTS, 5, GREEDY)
    monkeypatch.setattr(text_generation, "ROWS_AT_ONCE", 2)
    assert text_generation.generate_texts(generator, tokenizer, PROMPTS, 5, GREEDY) == whole
    assert (
        text_generation.generate_texts(generator, tokenizer, PROMPTS, 5, GREEDY, stops=["no"])
        == whole
    )


def test_model_with_the_ids_tokenizer_has_a_sample(model):
    made = tiny(**{"train.sample_tokens": 7})
    text = sample_text(made.train, 12, made.seed, *model, load_tokenizer("ids:11"))
    assert len(text.split()) == 7


def test_sample_at_the_end_of_a_run_has_the_requested_length():
    model_def, params = tiny_model(model__vocab_size=257)
    tokenizer = load_tokenizer("bytes")

    def text(length, seed):
        train = tiny(train__sample_tokens=length).train
        return sample_text(train, 12, seed, model_def, params, tokenizer)

    assert text(50, seed=0) != text(50, seed=1)
    assert len(text(50, seed=0).encode(errors="ignore")) >= 30
    assert text(50, seed=0).encode().startswith(text(5, seed=0).encode()[:3])


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("eval") / "run"
    made = config(text_file, train__eval_tokens=None, train__steps=20)
    assert loop.train(made, str(workdir)) == 0
    return workdir


def test_eval_reproduces_the_metrics_of_the_run(finished, tmp_path):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    done = run("eval.py", f"--workdir={finished}", "--json", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["step"] == 20 and result["tokens"] == 3999
    assert result["loss"] == pytest.approx(rows[-1]["val/loss"], rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(rows[-1]["val/bits_per_byte"], rel=1e-5)
    assert result["perplexity"] == pytest.approx(np.exp(result["loss"]))


def test_perplexity_that_overflows_is_null_with_a_reason(finished, tmp_path):
    """The text is one word of 2,000 bytes; tokens are bytes, so their perplexity is shown once."""
    (tmp_path / "word.txt").write_text("stream" * 400)
    result = evaluate_run(str(finished), None, str(tmp_path / "word.txt"), None)
    assert json.loads(to_json(result))["word_perplexity"] is None
    assert list(result["notes"]) == ["word_perplexity"]
    lines = {line.split()[0]: line for line in as_lines(result)}
    assert result["notes"]["word_perplexity"] in lines["word_perplexity"]
    assert "byte_perplexity" not in lines and "nats per token" in lines["loss"]


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
def test_eval_errors_are_one_line(finished, tmp_path, flag, line):
    done = run("eval.py", f"--workdir={finished}", flag, tmp=tmp_path)
    assert done.returncode == 2 and line in done.stderr.splitlines()[-1]
