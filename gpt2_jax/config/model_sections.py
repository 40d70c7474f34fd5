"""The sections `model` and `placement`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from gpt2_jax.fields import count, setting, share
from gpt2_jax.placements.axes import AXES, OWN, Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.expressions import Sizes
from gpt2_jax.placements.resolve import resolve
from gpt2_jax.placements.towers import ARCHITECTURES, TowerShape, make_towers


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes, dtypes and kernels.

    `n_inner` and `vocab_size`, and with `document_mask` also `end_of_text`, are integers once
    `config.resolve` has filled them in.
    """

    architecture: str = setting(
        "decoder",
        "`decoder`: each token attends to earlier ones; `encoder`: to all of its example; "
        "`encoder_decoder`: an encoder reads the source, and a decoder with cross-attention writes "
        "the target",
        choices=ARCHITECTURES.keys(),
    )
    n_layer: int = count(12, "blocks (attention and MLP)", maximum=10_000)
    n_encoder_layer: int | None = count(
        None,
        "blocks of the encoder of `architecture=encoder_decoder`; unset: `n_layer`",
        maximum=10_000,
    )
    n_head: int = count(12, "attention heads; must divide `n_embd`", maximum=2**20)
    n_embd: int = count(768, "width of the residual stream", maximum=2**20)
    n_positions: int = count(1024, "longest sequence; number of learned positions", maximum=2**24)
    n_inner: int = count(
        None,
        "hidden width of the MLP; unset: 4 x `n_embd`, or 8/3 x `n_embd` if gated",
        maximum=2**24,
    )
    vocab_size: int = count(None, "token ids; unset: the tokenizer's", maximum=2**24)
    vocab_multiple: int = count(
        128, "the model pads the vocabulary to a multiple of this", maximum=2**20
    )
    scale_attn_weights: bool = setting(True, "divide attention scores by sqrt(head width)")
    scale_attn_by_inverse_layer_idx: bool = setting(
        False, "also divide attention scores of block l (from 1) by l"
    )
    document_mask: bool = setting(
        False,
        "tokens attend only to their own document, and positions restart at each `end_of_text`, "
        "which begins a document; not supported by `attention=cudnn`",
    )
    end_of_text: int | None = setting(
        None,
        "with `document_mask`: id between documents; unset: the tokenizer's",
        minimum=0,
        maximum=2**24,
    )
    tie_head: bool = setting(True, "use the token embedding as the output matrix")
    share_embeddings: bool = setting(
        True, "with `architecture=encoder_decoder`: one token embedding for source and target"
    )
    position_offset: int = setting(
        0,
        "unused vectors before that of the first position, of which RoBERTa and BART have 2",
        minimum=0,
        maximum=2**10,
    )
    logits_bias: bool = setting(False, "a learned bias per token in the logits, as in Marian")
    token_types: int = setting(
        0,
        "with `architecture=encoder`: number of token types, such as 2 for BERT's pairs of "
        "sentences; 0: none",
        minimum=0,
        maximum=2**10,
    )
    dropout: float = share(0.0, "dropout on the embedding, attention weights and sublayer outputs")
    init_std: float = setting(
        0.02, "std of initial matrices and embeddings", minimum=0, maximum=100
    )
    attention: str = setting(
        "auto",
        "attention kernel; `auto`: for bfloat16, if supported, cudnn on a GPU and splash on a TPU; "
        "else xla",
        choices=("auto", "xla", "cudnn", "splash"),
    )
    fused_kernels: bool = setting(
        True, "on a GPU, compute LayerNorm and the training loss with kernels of this project"
    )
    dtype: str = setting(
        "float32", "compute dtype; parameters stay float32", choices=("float32", "bfloat16")
    )
    matmul_dtype: str | None = setting(
        None,
        "what inputs of matrix products are rounded to, with float32 results; unset: `dtype`; "
        "`auto`: bfloat16 on CPUs with fast products of it (AVX512-BF16, AMX)",
        choices=("float32", "bfloat16", "auto"),
    )
    unroll: bool = setting(True, "unroll the scan over layers: faster steps, slower compile")
    remat: str = setting(
        "none",
        "recomputed in the backward pass: `elementwise` all but matmuls and fused attention, "
        "`block` whole blocks",
        choices=("none", "elementwise", "block"),
    )

    @property
    def towers(self) -> tuple[TowerShape, ...]:
        """The towers of the architecture; the last one has the head."""
        n_encoder_layer = self.n_encoder_layer or self.n_layer
        depths = {"n_layer": self.n_layer, "n_encoder_layer": n_encoder_layer}
        return make_towers(self.architecture, depths)

    @property
    def depth(self) -> str:
        """The number of blocks as text; of each tower, as in `3 + 3`, if there are two."""
        return " + ".join(f"{tower.n_layer:,}" for tower in self.towers)

    def sizes(self, tower: TowerShape) -> Sizes:
        """Returns the sizes that a placement's expressions may use in a tower."""
        return Sizes(tower, self.n_embd, self.init_std)


@dataclass(frozen=True, kw_only=True)
class _Preset:
    preset: str = setting(
        "pre_ln",
        "preset of residual connections and norm placement",
        choices=PRESETS.keys(),
        otherwise=OWN,
    )
    module: str | None = setting(
        None, "Python module, imported by name, that registers your connections, norms or presets"
    )


# The axes of `Placement`, but unset by default: the preset's value.
_Axes: Any = dataclasses.make_dataclass(
    "_Axes",
    [
        (f.name, AXES[f.name].kind | None, dataclasses.field(default=None, metadata=f.metadata))
        for f in dataclasses.fields(Placement)
        if f.name in AXES
    ],
    bases=(_Preset,),
    frozen=True,
    kw_only=True,
)


@dataclass(frozen=True, kw_only=True)
class PlacementConfig(_Axes, _Preset):
    """A preset, and axes (`placements.axes.Placement`) that override it if set.

    Attributes:
      preset: a name in `placements.PRESETS`. module: registers more presets.
    """

    @property
    def overrides(self) -> dict[str, Any]:
        """The axes that are set, by name."""
        values = {name: getattr(self, name) for name in AXES}
        return {name: value for name, value in values.items() if value is not None}

    def resolve(self) -> Placement:
        """Returns the preset with its overrides.

        Raises:
          ValueError: if the preset's `layer_overrides` cannot be parsed.
        """
        return resolve(self.preset, self.overrides)
