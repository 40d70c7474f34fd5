"""Our lm-evaluation-harness adapter compared with the `hf` adapter, with the same weights."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from gpt2_jax import config as configs
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate import harness, likelihood
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_run
from tests import tools
from tests.data import tokenizers
from tests.track.wandb_server import WandbServer

pytestmark = pytest.mark.peers

WINDOW = 48


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A byte-level run with random weights, far from the initial values."""
    sizes = {"model.vocab_size": 257, "model.n_positions": WINDOW, "data.seq_len": WINDOW}
    config = tools.tiny(**sizes, track__wandb__mode="disabled")
    folder = tmp_path_factory.mktemp("harness")
    params = tools.noisy(define_model(config.model, config.placement).init(jax.random.key(0)), 0.3)
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(configs.to_json(config))
    save_params(folder / "run" / "weights", params)
    export_model(str(folder / "run"), str(folder / "theirs"))
    return folder


@pytest.fixture(scope="module")
def adapters(workdir):
    run = open_run(str(workdir / "run"), devices=1)
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(workdir / "theirs"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(workdir / "theirs"),
        max_length=WINDOW,
        batch_size=3,
        device="cpu",
    )
    return harness.HarnessModel(run, load_tokenizer("bytes")), theirs


def requests(kind, arguments):
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def likely_pair(adapter):
    """Returns a letter and the byte that greedy decoding puts after it, if it is text."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    nexts = adapter._generate(letters, {"max_gen_toks": 1})
    return next((a, b) for a, b in zip(letters, nexts, strict=True) if b and b.isascii())


def test_likelihoods_and_greedy_flags_equal_those_of_the_hf_adapter(adapters, monkeypatch):
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 256)  # several batches of each length
    # No two differ only in the last token: the `hf` adapter would mix up their logits.
    texts = [f"{n}{text}" for n, text in enumerate(["a norm before ", "ab c  ", " de f "] * 3)]
    pairs = [(text[:n], text[n:]) for n, text in enumerate(texts) if text[n:]]
    pairs += [("", "alone"), ("spaces ", "follow"), ("x" * 60, " long context"), ("y", "z" * 48)]
    pairs.append(likely_pair(adapters[0]))
    ours, theirs = (
        adapter.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
        for adapter in adapters
    )
    np.testing.assert_allclose([a for a, _ in ours], [b for b, _ in theirs], atol=1e-4, rtol=1e-5)
    assert [a for _, a in ours] == [b for _, b in theirs]
    assert {flag for _, flag in ours} == {True, False}


def merging(path):
    """Writes a tokenizer that merges `e` and `n`, and `b` and `en`."""
    path.write_text(json.dumps(tokenizers.bpe()), encoding="utf-8")
    return load_tokenizer(str(path))


@pytest.mark.parametrize(
    ("context", "continuation", "split"),
    [
        ("the", " river", ([13], [16, 17])),  # encoded as one text and split
        ("the ", "river", ([13], [16, 17])),  # the space belongs to the continuation
        ("the b", "ends", ([13, 11, 1], [18, 2, 8])),  # a token spans both: encoded separately
        ("the riv", "er", ([13, 16], [17])),
        ("th", "e", ([12], [3])),
        ("  ", "the", ([0], [11, 11, 13])),  # only spaces: the context is end-of-text
        ("", "the", ([0], [13])),
    ],
)
def test_continuation_that_merges_with_its_context_is_encoded_separately(
    workdir, tmp_path, context, continuation, split
):
    run = open_run(str(workdir / "run"), devices=1)
    adapter = harness.HarnessModel(run, merging(tmp_path / "t.json"))
    assert adapter._encode_pair(context, continuation) == split


def test_empty_continuation_is_refused(adapters):
    with pytest.raises(UserError, match="no tokens to score"):
        adapters[0].loglikelihood(requests("loglikelihood", [("a", "b"), ("a", "")]))
    with pytest.raises(UserError, match="no tokens to score"):
        adapters[0].loglikelihood(requests("loglikelihood", [("", "")]))


def test_long_continuation_is_scored_in_full(adapters):
    """More tokens than the window holds cost more, for any context."""
    pairs = [("y", "z" * n) for n in (48, 96, 192)]
    queries = requests("loglikelihood", pairs)
    answers = [log_p for log_p, _ in adapters[0].loglikelihood(queries, disable_tqdm=True)]
    assert answers[2] < answers[1] < answers[0] < 0


def test_rolling_likelihoods_equal_those_of_the_hf_adapter(adapters):
    texts = [("short",), ("the stream is normed. " * 8,), ("x",)]
    ours, theirs = (
        adapter.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
        for adapter in adapters
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-5)


def test_greedy_texts_equal_those_of_the_hf_adapter(adapters):
    """Only ASCII: the two adapters print invalid bytes differently."""
    how = {"until": ["zz"], "max_gen_toks": 12, "do_sample": False}
    queries = [("def", how), ("residual and", how), ("q", how)]
    ours, theirs = (
        adapter.generate_until(requests("generate_until", queries), disable_tqdm=True)
        for adapter in adapters
    )
    assert ours == theirs and len(set(ours)) > 1


@pytest.fixture(scope="module")
def task_data(tmp_path_factory):
    """A few documents of each kind, in the format of the published files."""
    import io
    import tarfile

    folder = tmp_path_factory.mktemp("tasks")
    for name in ("lambada", "hellaswag", "blimp", "wikitext2_raw"):
        (folder / name).mkdir()
    lines = lambda docs: "".join(json.dumps(doc) + "\n" for doc in docs)
    passages = [{"text": tools.make_text(90, seed).strip()} for seed in range(6)]
    (folder / "lambada" / "test.jsonl").write_text(lines(passages))
    question = {"activity_label": "Norm", "ctx_a": "A.", "ctx_b": "it", "label": 1, "ind": 1}
    question["endings"] = ["one.", "two and more.", "three.", "four."]
    (folder / "hellaswag" / "val.jsonl").write_text(lines([question] * 3))
    article = " \n = Title = \n \n Text of it . \n = = Part = = \n More . \n"
    (folder / "wikitext2_raw" / "test.raw").write_text(article * 2)
    with tarfile.open(folder / "blimp" / "data.tar.xz", "w:xz") as archive:
        for name in ("adjunct_island", "wh_island"):
            pairs = [{"sentence_good": f"A {i}.", "sentence_bad": f"{i} a."} for i in range(5)]
            data = lines(pairs).encode()
            member = tarfile.TarInfo(f"{name}.jsonl")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return folder


def test_tasks_run_on_local_files_and_reuse_cached_results(workdir, task_data, monkeypatch):
    names = ["lambada_openai", "hellaswag", "blimp", "wikitext"]
    run = str(workdir / "run")
    first = harness.evaluate_tasks(run, names, task_data=str(task_data))
    got = {(task, metric) for task, metric, _, _ in harness.rows(first)}
    assert {("lambada_openai", "acc"), ("blimp", "acc"), ("hellaswag", "acc_norm")} <= got
    assert ("wikitext", "word_perplexity") in got and ("blimp_wh_island", "acc") not in got
    assert first["n_documents"] == {
        "lambada_openai": 6,
        "hellaswag": 3,
        "blimp_adjunct_island": 5,
        "blimp_wh_island": 5,
        "wikitext": 2,
    }
    stored = json.loads((workdir / "run" / "evals" / f"{'-'.join(names)}-0.json").read_text())
    assert stored["results"] == json.loads(json.dumps(first["results"]))
    monkeypatch.setattr(likelihood.Scorer, "score", None)  # nothing is computed again
    again = harness.evaluate_tasks(run, names, task_data=str(task_data))
    assert again["results"] == first["results"]
    assert "± " in harness.table(again)


def test_unknown_task_is_named(workdir, task_data):
    run = str(workdir / "run")
    with pytest.raises(UserError, match=r"lambada_opnai is not a task .* did you mean"):
        harness.evaluate_tasks(run, ["lambada_opnai"])
    with pytest.raises(UserError, match="--task_data has no data for arc_easy"):
        harness.evaluate_tasks(run, ["arc_easy"], task_data=str(task_data))
    with pytest.raises(UserError, match=r"has no lambada/\*\.jsonl"):
        harness.evaluate_tasks(run, ["lambada_openai"], task_data=str(workdir))


def test_metrics_of_every_filter_are_reported():
    values = {"alias": "gsm8k", "exact_match,strict-match": 0.25, "acc,none": 1}
    values["exact_match_stderr,strict-match"] = 0.01
    results = {"results": {"gsm8k": values}, "groups": {}, "asked": ["gsm8k"], "n_documents": {}}
    assert list(harness.rows(results)) == [
        ("gsm8k", "exact_match/strict-match", 0.25, 0.01),
        ("gsm8k", "acc", 1.0, None),
    ]
    assert "± 0.01" in harness.table(results)


def test_scores_are_in_the_run_summary_on_wandb(workdir, task_data, tmp_path):
    import shutil

    run = shutil.copytree(workdir / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["track"]["wandb"]["mode"] = None
    (run / "config.json").write_text(json.dumps(config))
    with WandbServer() as server:
        done = tools.run(
            "eval.py",
            f"--workdir={run}",
            "--tasks=hellaswag",
            f"--task_data={task_data}",
            tmp=tmp_path,
            WANDB_MODE="online",
            WANDB_BASE_URL=server.url,
            WANDB_API_KEY="5ec4e7" * 7,
        )
        assert done.returncode == 0, done.stderr
        (stored,) = server.runs.values()
    assert "hellaswag                acc_norm" in done.stdout
    assert 0 <= stored.summary["eval/hellaswag/acc_norm"] <= 1
    placement = stored.config["placement"]["value"]  # as training sends it: resolved
    assert (placement["norm_sites"], placement["connection"]) == ("pre", "plain")
