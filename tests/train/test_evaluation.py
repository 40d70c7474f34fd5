"""Validation: every token is scored once and weighted equally, for any windows."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_jax.data.dataset import single
from gpt2_jax.data.shards import Tokens
from gpt2_jax.train.compiled_step import compile_step
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.evaluation import DatasetScore, Evaluator, Score, evenly_spaced_windows, windows
from tests.tools import tiny, tiny_model

IDS = np.random.default_rng(1).integers(0, 11, 131).astype(np.uint16)


@pytest.fixture(scope="module")
def setup():
    model, params = tiny_model()
    return model, params, Evaluator(model, make_mesh(tiny().train, tiny().mesh), 12, 8)


def test_windows_without_a_stride_do_not_overlap():
    assert list(windows(26, 10, 10)) == [(0, 10, 10), (10, 10, 10), (20, 5, 5)]


def test_windows_with_a_stride_reread_their_context():
    """Spans [0, 10), [5, 15), … of tokens, each predicted from the earlier ones in its span."""
    assert list(windows(25, 10, 5)) == [(0, 9, 9), (5, 9, 5), (10, 9, 5), (15, 9, 5)]
    assert list(windows(26, 10, 5)) == [(0, 9, 9), (5, 9, 5), (10, 9, 5), (15, 9, 5), (20, 5, 1)]


@given(st.integers(2, 200), st.integers(1, 20), st.data())
def test_each_token_is_predicted_once(n, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    predicted = []
    for start, length, scored in windows(n, seq_len, stride):
        assert 0 < scored <= length <= seq_len and start >= 0
        predicted += range(start + length - scored + 1, start + length + 1)
    assert predicted == list(range(1, n))


def by_hand(model, params, stride):
    nats, hits = 0.0, 0
    log_probabilities = jax.jit(lambda ids: jax.nn.log_softmax(model.bind(params)(ids)[0]))
    for start, length, scored in windows(len(IDS), 12, stride):
        ids = IDS[start : start + length + 1].astype(np.int32)
        log_p = np.asarray(log_probabilities(ids[None, :-1]))
        for i in range(length - scored, length):
            nats -= float(log_p[i, ids[i + 1]])
            hits += int(log_p[i].argmax() == ids[i + 1])
    return nats, hits


@pytest.mark.parametrize("stride", [12, 5, 1])
def test_score_is_the_sum_over_separate_windows(setup, stride):
    model, params, evaluator = setup
    score = evaluator.score(params, 0, Tokens([IDS[:40], IDS[40:]]), stride=stride)
    nats, hits = by_hand(model, params, stride)
    assert score.tokens == 130
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.correct == hits


def test_stride_changes_the_score(setup):
    _, params, evaluator = setup
    tokens = Tokens([IDS])
    assert (
        evaluator.score(params, 0, tokens).nats != evaluator.score(params, 0, tokens, stride=5).nats
    )


def test_limited_windows_are_spread_over_the_text():
    assert list(evenly_spaced_windows(101, 10, 39)) == [(0, 10, 10), (45, 10, 10), (90, 10, 10)]
    assert list(evenly_spaced_windows(101, 10, 5)) == [(0, 10, 10)]


def test_limited_score_is_that_of_its_windows(setup):
    _, params, evaluator = setup
    limited = evaluator.score(params, 0, Tokens([IDS]), limit=40)
    parts = [evaluator.score(params, 0, Tokens([IDS[s : s + 13]])) for s in (0, 59, 118)]
    assert limited.tokens == 36
    assert limited.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-6)
    assert evaluator.score(params, 0, Tokens([IDS]), limit=130).tokens == 130


def of_one(score, bytes_per_token):
    corpus = SimpleNamespace(bytes_per_token=lambda split: bytes_per_token)
    return DatasetScore(single(corpus), (score,)).metrics()


def test_metrics_in_bits_per_byte():
    metrics = of_one(Score(nats=200 * np.log(2), correct=25, tokens=100), 4.0)
    assert metrics["val/bits_per_byte"] == pytest.approx(0.5)
    assert metrics["val/accuracy"] == 0.25
    assert metrics["val/loss"] == pytest.approx(2 * np.log(2))
    assert "val/bits_per_byte" not in of_one(Score(1.0, 0, 1), None)


@pytest.mark.parametrize("changes", [{}, {"optimizer__frozen": ("blocks.0",), "mesh__fsdp": 2}])
def test_programs_that_are_compiled_with_the_step_give_the_same_results(changes):
    """Parameters that are frozen in part are joined, so their layout may differ."""
    alone, together = (compile_step(tiny(**changes), others=others) for others in (False, True))
    assert isinstance(together.init, jax.stages.Compiled)
    assert not isinstance(alone.init, jax.stages.Compiled)
    states = [program.init() for program in (alone, together)]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    scores = [
        program.evaluator.score(state.all_params, 0, Tokens([IDS]))
        for program, state in zip((alone, together), states, strict=True)
    ]
    assert scores[0] == scores[1]
