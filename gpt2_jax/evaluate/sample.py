"""Text from a model: prefill and decoding in one compiled program over a cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.model.structure import Structure
from gpt2_jax.train.state import purpose_key

PROMPT = "\n"
TEMPERATURE = 0.8
TOP_K = 40


def sample_text(config: ConfigDict, structure: Structure, params: Any, tokenizer: Tokenizer) -> str:
    """Returns `train.sample_tokens` of text after a line break, at temperature 0.8, top 40.

    Where the text outgrows `data.seq_len`, the positions that were trained, the model reads its
    second half again as a prompt.
    """
    params = jax.tree.map(lambda x: x.addressable_data(0), params)
    length, positions = config.train.sample_tokens, config.data.seq_len
    (prompt,) = tokenizer.encode([PROMPT])
    out: list[int] = []
    context = prompt.tolist()[: positions - 1]
    key = purpose_key(config.seed, "sample")
    while len(out) < length:
        new = generate(
            structure,
            params,
            jnp.array([context], jnp.int32),
            jax.random.fold_in(key, len(out)),
            n_new=positions - len(context),
            temperature=TEMPERATURE,
            top_k=TOP_K,
        )
        out += np.asarray(new)[0].tolist()
        context = (context + out)[-max(1, positions // 2) :]
    return tokenizer.decode_bytes(out[:length]).decode(errors="replace")


@partial(jax.jit, static_argnames=("structure", "n_new", "top_k"))
def generate(
    structure: Structure,
    params: Any,
    prompt_BT: jax.Array,
    key: jax.Array,
    *,
    n_new: int,
    temperature: float,
    top_k: int,
) -> jax.Array:
    """Returns ids (B, n_new) that go on from the prompts.

    Args:
      prompt_BT: ids, all of one length; T + n_new must not exceed `n_positions`.
      temperature: divides the logits; 0 takes the likeliest id.
      top_k: draws among this many likeliest ids.
    """
    model = structure.bind(params)
    batch, n_prompt = prompt_BT.shape

    def draw(logits_BV: jax.Array, at: jax.Array | int) -> jax.Array:
        best_BK, ids_BK = lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))
        warm = best_BK / jnp.maximum(temperature, 1e-6)
        chosen_B = jax.random.categorical(jax.random.fold_in(key, at), warm)
        chosen_B = jnp.where(temperature == 0.0, 0, chosen_B)
        return jnp.take_along_axis(ids_BK, chosen_B[:, None], axis=1)[:, 0]

    cache = model.empty_cache(batch, n_prompt + n_new)
    logits_BTV, cache = model.decode(prompt_BT, cache, 0)
    first_B = draw(logits_BTV[:, -1], n_prompt)

    def body(carry: Any, position: jax.Array) -> tuple[Any, jax.Array]:
        ids_B, cache = carry
        logits_B1V, cache = model.decode(ids_B[:, None], cache, position)
        return (draw(logits_B1V[:, 0], position + 1), cache), ids_B

    positions = n_prompt + jnp.arange(n_new)
    _, new_TB = lax.scan(body, (first_B, cache), positions)
    return new_TB.T
