"""Packed documents: nothing crosses from one to the next, and each is as if run alone."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import resolve
from gpt2_jax.data.batch import Batch
from gpt2_jax.data.shards import Tokens
from gpt2_jax.errors import UserError
from gpt2_jax.model.definition import define_model
from gpt2_jax.model.diagnostics import observe
from gpt2_jax.model.sublayer import resolve_kernel
from gpt2_jax.nn.masks import first_of_document
from gpt2_jax.train.distributed.mesh import make_mesh
from gpt2_jax.train.evaluation import Evaluator
from gpt2_jax.train.loss import mean_loss
from tests.model.test_gpt2 import decoded
from tests.placements import EVERY, depth
from tests.tools import tiny, tiny_model

END = 10
STEP = 700
MASKED = {"model__document_mask": True, "model__end_of_text": END}
DOCUMENTS = [[3, 1, 4], [END, 1, 5, 9, 2], [END, 6, 5, 3]]
PACKED = jnp.array([[i for document in DOCUMENTS for i in document]])  # (1, 12)
ALONE = jnp.array([d + [0] * (12 - len(d)) for d in DOCUMENTS])  # causal, so padding is not seen
NUMBER = np.repeat(np.arange(3), [len(d) for d in DOCUMENTS])
POSITION = np.concatenate([np.arange(len(d)) for d in DOCUMENTS])
WEIGHTS = jax.random.normal(jax.random.key(9), (12, 11))


@cache
def models(name="pre_ln", **changes):
    """Returns a preset with and without the mask, and parameters of both."""
    given = {"placement__preset": name, "model__n_layer": depth(name), **changes}
    plain, params = tiny_model(**given)
    config = tiny(**given, **MASKED)
    return define_model(config.model, config.placement), plain, params


@partial(jax.jit, static_argnums=0)
def logits(model, params, tokens):
    return model.bind(params)(tokens, step=STEP)[..., :11]


def influence(model, params):
    """Returns whether position T's logits depend on the embedding at position S, (T, S)."""
    bound = model.bind(params)
    context = bound.context_of(PACKED, None, STEP)

    def out(x_BTD):
        hidden = bound.head_input(bound.blocks(bound.blocks.begin(x_BTD), context)[0])
        return (bound.logits(hidden)[0, :, :11] * WEIGHTS).sum(-1)

    jacobian = jax.jit(jax.jacrev(out))(bound.embedding(PACKED, context))
    return np.asarray(jnp.abs(jacobian)[:, 0].sum(-1)) > 0


@pytest.mark.parametrize("name", EVERY)
def test_documents_are_independent_and_as_if_alone(name):
    """Gradients across documents are exactly zero, and logits are those of separate documents."""
    masked, plain, params = models(name, model__unroll=False)
    same = NUMBER[:, None] == NUMBER
    np.testing.assert_array_equal(influence(masked, params), np.tril(same))
    *separate, unmasked = logits(plain, params, jnp.concatenate([ALONE, PACKED]))
    alone = jnp.stack(separate)[NUMBER, POSITION]
    np.testing.assert_allclose(logits(masked, params, PACKED)[0], alone, atol=1e-5)
    assert jnp.abs(unmasked - alone)[3:].max() > 1e-2  # the mask is what makes them equal


@pytest.mark.parametrize(
    "changes",
    [
        {"model__unroll": True},
        {"model__remat": "block"},
        {"model__remat": "elementwise", "model__unroll": False},
        {"placement__positions": "rotary"},
        {"placement__positions": "sinusoidal"},
        {"placement__positions_at": "block"},
    ],
    ids=str,
)
def test_modes_and_positions(changes):
    masked, plain, params = models(**changes)
    of_packed = lambda p: (logits(masked, p, PACKED)[0] * WEIGHTS).sum()
    of_alone = lambda p: (logits(plain, p, ALONE)[NUMBER, POSITION] * WEIGHTS).sum()
    got, want = jax.jit(jax.grad(of_packed))(params), jax.jit(jax.grad(of_alone))(params)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * scale), got, want)


def test_off_by_default_and_without_effect_in_a_single_document():
    assert not tiny().model.document_mask
    masked, plain, params = models()
    tokens = jnp.array([[END, *range(9), 3, 4], [*range(10), 3, 4]])
    np.testing.assert_array_equal(logits(masked, params, tokens), logits(plain, params, tokens))


@pytest.mark.parametrize("spans", [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 5, 9], [0]])
def test_decoding_with_a_cache_equals_the_full_pass(spans):
    """Also where a document begins inside a span, and after padding."""
    masked, _, params = models()
    tokens = jnp.concatenate([PACKED, PACKED[:, ::-1]])
    got = decoded(masked, params, tokens, spans, (0, 0), STEP)[..., :11]
    np.testing.assert_allclose(got, logits(masked, params, tokens), atol=1e-5)
    padded = jnp.concatenate([jnp.full((1, 2), END), PACKED[:, :10]], 1)
    got = decoded(masked, params, padded, spans, (2,), STEP)[:, 2:, :11]
    np.testing.assert_allclose(got, logits(masked, params, PACKED[:, :10]), atol=1e-5)


def test_every_prediction_counts_in_the_loss():
    """The first token of a document is predicted from end-of-text alone."""
    masked, plain, params = models()
    window = jnp.concatenate([PACKED, jnp.array([[END]])], 1)
    loss = mean_loss(params, masked, Batch(window), None, STEP)
    log_p = jax.nn.log_softmax(logits(plain, params, ALONE)[NUMBER, POSITION])
    expected = -jnp.take_along_axis(log_p, window[0, 1:, None], 1).mean()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_evaluation_and_diagnostics_use_the_mask():
    masked, plain, params = models()
    tokens = Tokens([np.array([*PACKED[0].tolist(), END], np.uint16)])
    mesh = make_mesh(tiny().train, tiny().mesh)
    score = lambda model: Evaluator(model, mesh, 12, 8).score(params, STEP, tokens).nats
    log_p = jax.nn.log_softmax(logits(plain, params, ALONE)[NUMBER, POSITION])
    targets = tokens.window(1, 12)[:, None]
    expected = float(-jnp.take_along_axis(log_p, targets, 1).sum())
    assert score(masked) == pytest.approx(expected, rel=1e-5)
    assert abs(score(plain) - expected) > 1e-2
    entropy = lambda model: observe(model, params, PACKED, STEP).entropy
    assert (entropy(masked) < entropy(plain)).all()


def test_first_of_document_continues_an_open_document():
    is_first = jnp.array([[False, True, False, True], [False, False, False, False]])
    found = first_of_document(is_first, 5 + jnp.arange(4), jnp.array([2, 4]))
    assert found.tolist() == [[2, 6, 6, 8], [4, 4, 4, 4]]


def test_the_id_between_documents_is_the_tokenizers_unless_set():
    config = tiny(model__document_mask=True)
    assert resolve(config, 11, end_of_text=7).model.end_of_text == 7
    assert resolve(tiny(**MASKED), 11, end_of_text=7).model.end_of_text == END
    assert resolve(tiny(), 11, end_of_text=7).model.end_of_text is None
    with pytest.raises(UserError, match=r"model\.end_of_text=11 is not below model\.vocab_size=11"):
        resolve(config, 11, end_of_text=11)


def test_the_cudnn_kernel_is_refused_and_never_chosen():
    cudnn = {"model__dtype": "bfloat16", "model__n_embd": 32, "model__n_head": 2}
    masked, plain, _ = models(**cudnn)
    assert resolve_kernel(plain.cfg, plain.spec, "gpu") == "cudnn"
    assert resolve_kernel(masked.cfg, masked.spec, "gpu") == "xla"
    assert resolve_kernel(masked.cfg, masked.spec, "tpu") == "splash"
    with pytest.raises(UserError, match=r"cudnn does not support model\.document_mask; set model"):
        tiny(**cudnn, **MASKED, model__attention="cudnn")
    with pytest.raises(
        UserError, match=r"end_of_text=3 has no effect without model\.document_mask"
    ):
        tiny(model__end_of_text=3)
