"""Small BERT, RoBERTa, Marian and BART checkpoints with random weights, and what they compute.

Names and shapes are those that transformers 5.23 saves; tests/peers compares with transformers.
"""

import json
from math import erf, sqrt

import numpy as np
from safetensors.numpy import save_file

D, H, F, V, T = 8, 2, 12, 11, 10  # width, heads, hidden width, vocabulary, positions
IDS = np.array([[7, 8, 9, 10, 6, 5], [6, 7, 8, 3, 3, 3]])
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
TYPES = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0]])
DECODER_IDS = np.array([[10, 6, 7, 8], [10, 9, 6, 6]])
LABELS = ["O", "B-PER", "I-PER"]

COMMON = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H}
COMMON |= {"intermediate_size": F, "vocab_size": V, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
ENCODERS = {
    "bert": {
        "model_type": "bert",
        **COMMON,
        "max_position_embeddings": T,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    },
    "roberta": {
        "model_type": "roberta",
        **COMMON,
        "max_position_embeddings": T + 2,
        "type_vocab_size": 2,  # usually 1; here types matter
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
TOWERS = {"d_model": D, "encoder_layers": 1, "decoder_layers": 2, "vocab_size": V}
TOWERS |= {f"{tower}_attention_heads": H for tower in ("encoder", "decoder")}
TOWERS |= {f"{tower}_ffn_dim": F for tower in ("encoder", "decoder")}
TOWERS |= {"max_position_embeddings": T, "is_encoder_decoder": True, "tie_word_embeddings": True}
TOWERS |= {"pad_token_id": 10, "eos_token_id": 0, "decoder_start_token_id": 10}
SEQ2SEQ = {
    "marian": TOWERS
    | {"model_type": "marian", "activation_function": "swish", "scale_embedding": True},
    "bart": TOWERS
    | {"model_type": "bart", "activation_function": "gelu", "scale_embedding": False},
}


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name):
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def encoder_shapes(model_type):
    """Returns the tensors of a base model without its pooler, without prefix."""
    e = "embeddings"
    out = {f"{e}.word_embeddings.weight": (V, D), f"{e}.token_type_embeddings.weight": (2, D)}
    n_positions = ENCODERS[model_type]["max_position_embeddings"]
    out |= {f"{e}.position_embeddings.weight": (n_positions, D)} | norm(f"{e}.LayerNorm")
    for i in range(2):
        layer = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            out |= linear(f"{layer}attention.self.{part}", D, D)
        out |= linear(f"{layer}attention.output.dense", D, D)
        out |= norm(f"{layer}attention.output.LayerNorm")
        out |= linear(f"{layer}intermediate.dense", D, F) | linear(f"{layer}output.dense", F, D)
        out |= norm(f"{layer}output.LayerNorm")
    return out


POOLER = linear("pooler.dense", D, D)
CLASSES = {
    "bert": {
        "BertForMaskedLM": {
            **linear("cls.predictions.transform.dense", D, D),
            **norm("cls.predictions.transform.LayerNorm"),
            "cls.predictions.bias": (V,),
        },
        "BertForTokenClassification": linear("classifier", D, 3),
        "BertForSequenceClassification": linear("bert.pooler.dense", D, D)
        | linear("classifier", D, 3),
        "BertForQuestionAnswering": linear("qa_outputs", D, 2),
    },
    "roberta": {
        "RobertaForMaskedLM": {
            **linear("lm_head.dense", D, D),
            **norm("lm_head.layer_norm"),
            "lm_head.bias": (V,),
        },
        "RobertaForTokenClassification": linear("classifier", D, 3),
        "RobertaForSequenceClassification": linear("classifier.dense", D, D)
        | linear("classifier.out_proj", D, 3),
        "RobertaForQuestionAnswering": linear("qa_outputs", D, 2),
    },
}


def class_shapes(model_type, name):
    """Returns the tensors that a class of BERT or RoBERTa saves."""
    base = encoder_shapes(model_type)
    if name.endswith("Model"):
        return base | POOLER
    heads = CLASSES[model_type][name]
    return {f"{model_type}.{key}": shape for key, shape in base.items()} | heads


def seq2seq_shapes(model_type):
    """Returns the tensors that MarianMTModel or BartForConditionalGeneration saves."""
    out = {"model.shared.weight": (V, D), "final_logits_bias": (1, V)}
    for tower, n_layer in (("encoder", 1), ("decoder", 2)):
        if model_type == "bart":
            out |= {f"model.{tower}.embed_positions.weight": (T + 2, D)}
            out |= norm(f"model.{tower}.layernorm_embedding")
        parts = ["self_attn"] + ["encoder_attn"] * (tower == "decoder")
        for i in range(n_layer):
            layer = f"model.{tower}.layers.{i}."
            for part in parts:
                for one in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    out |= linear(f"{layer}{part}.{one}", D, D)
                out |= norm(f"{layer}{part}_layer_norm")
            out |= linear(f"{layer}fc1", D, F) | linear(f"{layer}fc2", F, D)
            out |= norm(f"{layer}final_layer_norm")
    return out


def values(shapes, dtype="float32", seed=0):
    """Returns random values with a standard deviation of 0.5, and a mean of 1 for gains."""
    random = np.random.default_rng(seed)
    is_gain = lambda name, shape: name.endswith(".weight") and len(shape) == 1
    return {
        name: (0.5 * random.normal(size=shape) + is_gain(name, shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def write(folder, fields, tensors):
    """Writes config.json and model.safetensors to a new folder."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


class Weights:
    """Tensors of a checkpoint in float64, by name under a prefix."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def at(self, prefix):
        return Weights(self.tensors, f"{self.prefix}{prefix}")

    def __getitem__(self, name):
        return np.asarray(self.tensors[self.prefix + name], np.float64)

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name, x):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def swish(x):
    return x / (1 + np.exp(-x))


def heads(x_BTD):
    b, t, d = x_BTD.shape
    return x_BTD.reshape(b, t, H, d // H).swapaxes(1, 2)


def attend(q_BTD, k_BSD, v_BSD, allowed):
    """Multi-head attention; `allowed` broadcasts to (B, H, T, S)."""
    q, k, v = heads(q_BTD), heads(k_BSD), heads(v_BSD)
    scores = np.where(allowed, q @ k.swapaxes(-1, -2) / sqrt(D // H), -1e9)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(*q_BTD.shape)


def encoder_hidden(w, ids, mask, types, offset):
    """Returns the hidden states (B, T, D) of BERT, or of RoBERTa with an offset of positions."""
    e = w.at("embeddings.")
    positions = np.arange(ids.shape[1]) + offset
    x = e["word_embeddings.weight"][ids] + e["position_embeddings.weight"][positions]
    x = e.norm("LayerNorm", x + e["token_type_embeddings.weight"][types])
    for i in range(2):
        layer = w.at(f"encoder.layer.{i}.")
        q, k, v = (layer.linear(f"attention.self.{n}", x) for n in ("query", "key", "value"))
        a = layer.linear("attention.output.dense", attend(q, k, v, mask[:, None, None] == 1))
        x = layer.norm("attention.output.LayerNorm", x + a)
        h = layer.linear("output.dense", gelu(layer.linear("intermediate.dense", x)))
        x = layer.norm("output.LayerNorm", x + h)
    return x


def seq2seq_logits(model_type, tensors, ids, mask, decoder_ids):
    """Returns the logits (B, T, V) of Marian or BART."""
    w, act = Weights(tensors, "model."), {"marian": swish, "bart": gelu}[model_type]
    encoder, decoder = w.at("encoder."), w.at("decoder.")
    source = mask[:, None, None] == 1
    memory = _tower(model_type, w["shared.weight"], encoder, 1, act, ids, source, None, None)
    causal = np.tril(np.ones((decoder_ids.shape[1],) * 2, bool))
    table = w["shared.weight"]
    x = _tower(model_type, table, decoder, 2, act, decoder_ids, causal, memory, source)
    return x @ table.T + tensors["final_logits_bias"]


def _tower(model_type, table, w, n_layer, act, ids, allowed, memory, source):
    if model_type == "marian":
        x = table[ids] * sqrt(D) + _sinusoids(ids.shape[1])
    else:
        x = table[ids] + w["embed_positions.weight"][np.arange(ids.shape[1]) + 2]
        x = w.norm("layernorm_embedding", x)
    for i in range(n_layer):
        layer = w.at(f"layers.{i}.")
        x = _attention(layer, "self_attn", x, x, allowed)
        if memory is not None:
            x = _attention(layer, "encoder_attn", x, memory, source)
        h = layer.linear("fc2", act(layer.linear("fc1", x)))
        x = layer.norm("final_layer_norm", x + h)
    return x


def _attention(layer, name, x, memory, allowed):
    q = layer.linear(f"{name}.q_proj", x)
    k, v = (layer.linear(f"{name}.{one}_proj", memory) for one in "kv")
    y = layer.linear(f"{name}.out_proj", attend(q, k, v, allowed))
    return layer.norm(f"{name}_layer_norm", x + y)


def _sinusoids(n):
    angles = np.arange(n)[:, None] / 10000 ** (2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)
