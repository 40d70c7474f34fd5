"""The forward pass compared with all stored intermediates of a trained model (bbycroft/llm-viz)."""

import base64
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt2_jax.nn.activations import ACTIVATIONS
from gpt2_jax.nn.attention import masked_scores, mix
from tests.tools import ROOT, tiny

FIXTURE = ROOT / "tests" / "fixtures" / "gpt_nano_sort"


def read(name):
    stored = json.loads((FIXTURE / name).read_text())
    return {
        key: np.frombuffer(base64.b64decode(value["data"]), np.float32).reshape(value["shape"])
        for key, value in stored.items()
        if isinstance(value, dict) and "data" in value
    }


@pytest.fixture(scope="module")
def sorter():
    """The model definition and trained parameters; linear weights are stored as [out, in]."""
    from gpt2_jax.model.definition import define_model

    config = tiny(
        model__n_layer=3,
        model__n_head=3,
        model__n_embd=48,
        model__n_positions=11,
        model__vocab_size=3,
        model__vocab_multiple=1,
        model__tie_head=False,
        data__seq_len=11,
    )
    model, w = define_model(config.model, config.placement), read("model.json")

    def layers(name):
        return np.stack([w[f"transformer.h.{i}.{name}"] for i in range(3)])

    def linear(name, d_in, d_out):
        kernel = layers(f"{name}.weight").swapaxes(1, 2).reshape(3, *d_in, *d_out)
        return {"kernel": kernel, "bias": layers(f"{name}.bias").reshape(3, *d_out)}

    def norm(name):
        return {"gain": layers(f"{name}.weight"), "bias": layers(f"{name}.bias")}

    params = {
        "embedding": {"wte": w["transformer.wte.weight"], "wpe": w["transformer.wpe.weight"]},
        "head": w["lm_head.weight"],
        "ln_f": {"gain": w["transformer.ln_f.weight"], "bias": w["transformer.ln_f.bias"]},
        "blocks": {
            "all": {
                "attn": {
                    "pre": norm("ln_1"),
                    "sublayer": {
                        "qkv": linear("attn.c_attn", (48,), (3, 3, 16)),
                        "out": linear("attn.c_proj", (3, 16), (48,)),
                    },
                },
                "mlp": {
                    "pre": norm("ln_2"),
                    "sublayer": {
                        "up": linear("mlp.c_fc", (48,), (192,)),
                        "down": linear("mlp.c_proj", (192,), (48,)),
                    },
                },
            },
        },
    }
    params = jax.tree.map(jnp.asarray, params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, model.shapes)
    return model, params


def block_at(model, params, layer):
    bound = model.bind(params)
    graphdef, state = nnx.split(bound.blocks.all)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[layer], state))


def test_trained_model_has_its_published_size(sorter):
    assert sorter[0].n_params() == 85_728


def test_every_stored_intermediate_within_1e_5(sorter):
    model, params = sorter
    want = read("partials.json")
    bound = model.bind(params)
    tokens = want["idx"].astype(np.int32)
    got = {}
    got["tok_emb"] = bound.embedding.wte[...][tokens]
    got["pos_emb"] = bound.embedding.wpe[...][None]
    context = bound.context(jnp.arange(11), None, None)
    x = got["x"] = bound.embedding(tokens, context)
    for layer in range(3):
        block = block_at(model, params, layer)
        if layer == 0:
            got |= first_block(block, x, context)
        x = got[f"block{layer}"] = block(x, context.at(layer, None))[0]
    got["ln_f"] = bound.ln_f(x)
    got["lm_head"] = bound.logits(got["ln_f"])
    got["probs"] = jax.nn.softmax(got["lm_head"], -1)
    assert set(got) == set(want) - {"idx"}
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], atol=1e-5, rtol=0, err_msg=name)
    np.testing.assert_allclose(model.bind(params)(tokens), want["lm_head"], atol=1e-5, rtol=0)


def first_block(block, x, context):
    """Returns the intermediates of the first block, computed with its own parts."""
    attn, mlp = block.attn.sublayer, block.mlp.sublayer
    got = {"ln1": block.attn.pre(x)}
    q, k, v = attn.project(got["ln1"], context)
    got |= {"q": q, "k": k, "v": v}
    got["qkv"] = attn.qkv(got["ln1"]).reshape(*x.shape[:2], -1)
    scale = attn.score_scale(context)
    mask = jnp.tril(jnp.ones((11, 11), bool))
    got["att"] = jnp.where(mask, masked_scores(q, k, scale, mask), -jnp.inf)
    got["attSm"] = jax.nn.softmax(masked_scores(q, k, scale, mask), -1)
    mixed = mix(got["attSm"], v)
    got["y"] = mixed.reshape(*x.shape[:2], -1)
    got["yProj"] = attn.out(mixed)
    got["attnResid"] = x + attn(got["ln1"], context)[0]
    got["ln2"] = block.mlp.pre(got["attnResid"])
    got["fc"] = mlp.up(got["ln2"])
    got["gelu"] = ACTIVATIONS["gelu_new"](got["fc"])
    got["mlp"] = mlp.down(got["gelu"])
    got["mlpResid"] = got["attnResid"] + mlp(got["ln2"], context)[0]
    return got


def test_all_729_sequences_are_sorted(sorter):
    model, params = sorter
    digits = np.array(list(itertools.product(range(3), repeat=6)), np.int32)
    forward = jax.jit(lambda tokens: model.bind(params)(tokens))
    tokens = np.zeros((729, 11), np.int32)
    tokens[:, :6] = digits
    for position in range(5, 11):
        best = np.asarray(forward(tokens))[:, position].argmax(-1)
        if position + 1 < 11:
            tokens[:, position + 1] = best
    answers = np.concatenate([tokens[:, 6:], best[:, None]], axis=1)
    np.testing.assert_array_equal(answers, np.sort(digits, axis=1))
