"""An encoder, and a decoder that reads its output (Vaswani et al. 2017)."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.config.sections import ModelConfig
from gpt2_jax.data.batch import Tokens
from gpt2_jax.model.tower import Inputs, Tower
from gpt2_jax.model.transformer import Transformer
from gpt2_jax.nn.context import Memory
from gpt2_jax.nn.masks import SequenceMask
from gpt2_jax.nn.target import Target
from gpt2_jax.placements.spec import TowerSpec


class EncoderDecoder(nnx.Module):
    """Token ids of a source (B, S) and a target (B, T) to next-token logits of the target.

    Each tower has its own residual stream, initial values and dropout. With `share_embeddings`,
    the token table is the encoder's; so is then the output matrix with `tie_head`.

    Args:
      specs: of the encoder and of the decoder.
    """

    def __init__(
        self, cfg: ModelConfig, specs: tuple[TowerSpec, ...], target: Target, key: jax.Array
    ):
        encoder, decoder = specs
        self.cfg = cfg
        self.encoder = Tower(cfg, encoder, target, tower_key(key, "encoder"))
        owns_table, decoder_key = not cfg.share_embeddings, tower_key(key, "decoder")
        self.decoder = Transformer(cfg, decoder, target, decoder_key, owns_table=owns_table)

    def link(self) -> None:
        """Lets the decoder read the encoder's token table, if it has none of its own."""
        if self.decoder.embedding.wte is None:
            self.decoder.embedding.read_table = self.encoder.embedding.table

    def __call__(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
        source: Inputs | None = None,
    ) -> jax.Array:
        """Returns float32 logits (B, T, V); the arguments are those of `hidden`."""
        return self.logits(self.hidden(inputs, keys_B, step, source))

    def hidden(
        self,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
        source: Inputs | None = None,
    ) -> jax.Array:
        """Returns the head's input (B, T, D), the output of the decoder.

        Args:
          inputs: of the decoder. source: of the encoder; a segment of the target reads the segment
            of the source with the same number.
          keys_B: a dropout key per sequence; None for no dropout.
          step: steps done, for scales that depend on it.

        Raises:
          ValueError: if there is no source.
        """
        if source is None:
            raise ValueError("an encoder-decoder needs a source")
        memory = self.encode(source, inputs, keys_B, step)
        return self.decoder.output(inputs, tower_keys(keys_B, "decoder"), step, memory)

    def encode(
        self,
        source: Inputs,
        inputs: Inputs,
        keys_B: jax.Array | None = None,
        step: jax.Array | int | None = None,
    ) -> Memory:
        """Returns what cross-attention reads; the arguments are those of `hidden`."""
        x_BSD = self.encoder.output(source, tower_keys(keys_B, "encoder"), step)
        return self.memory(x_BSD, source, inputs)

    def memory(self, x_BSD: jax.Array, source: Inputs, inputs: Inputs) -> Memory:
        """Returns what cross-attention reads, given the output of the encoder."""
        mask = SequenceMask(causal=False)
        if isinstance(source, Tokens) or isinstance(inputs, Tokens):
            mask = SequenceMask(False, segments_of(inputs), segments_of(source))
        # The gradients of all blocks are then added in float32.
        return Memory(x_BSD.astype(jnp.float32), mask)

    def nll(self, x_BTD: jax.Array, targets_BT: jax.Array, z_loss: float = 0.0) -> jax.Array:
        """Returns the `cross_entropy` of targets, float32 (B, T), from the output of `hidden`."""
        return self.decoder.nll(x_BTD, targets_BT, z_loss)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits (B, T, V) from the output of `hidden`."""
        return self.decoder.logits(x_BTD)


def segments_of(inputs: Inputs) -> jax.Array:
    """Returns the segment number of each token, (B, T); all 1 if there are none."""
    return inputs.segments_BT if isinstance(inputs, Tokens) else jnp.ones_like(inputs)


def tower_key(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a tower's initial values."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def tower_keys(keys_B: jax.Array | None, name: str) -> jax.Array | None:
    """Returns the dropout keys of a tower, one per sequence."""
    return None if keys_B is None else jax.vmap(lambda key: tower_key(key, name))(keys_B)
