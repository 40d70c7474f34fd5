"""Every config field with its type, default, range and meaning: frozen dataclasses by section.

Nothing here imports jax, so that a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt2_jax.fields import INT_MAX, setting
from gpt2_jax.placements.axes import AXES, OWN, Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.expressions import Sizes
from gpt2_jax.placements.resolve import resolve

count = partial(setting, minimum=1, maximum=INT_MAX)  # steps, sequences and the like
share = partial(setting, minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes, dtypes and kernels.

    `n_inner` and `vocab_size` are integers once `config.resolve` has filled them in.
    """

    n_layer: int = count(12, "blocks (attention and MLP)", maximum=10_000)
    n_head: int = count(12, "attention heads; must divide `n_embd`", maximum=2**20)
    n_embd: int = count(768, "width of the residual stream", maximum=2**20)
    n_positions: int = count(1024, "learned positions: the longest sequence", maximum=2**24)
    n_inner: int = count(
        None,
        "width inside the MLP; unset: 4 x `n_embd`, of a gated one 8/3 x `n_embd`",
        maximum=2**24,
    )
    vocab_size: int = count(None, "token ids; unset: the tokenizer's", maximum=2**24)
    vocab_multiple: int = count(
        128, "the vocabulary is padded inside to a multiple of this", maximum=2**20
    )
    scale_attn_weights: bool = setting(True, "attention scores are divided by sqrt(head width)")
    scale_attn_by_inverse_layer_idx: bool = setting(
        False, "attention scores of block l (from 1) are divided by l as well"
    )
    tie_head: bool = setting(True, "the output matrix is the token embedding")
    dropout: float = share(0.0, "dropout on the embedding, attention weights and sublayer outputs")
    init_std: float = setting(
        0.02, "std of initial matrices and embeddings", minimum=0, maximum=100
    )
    attention: str = setting(
        "auto",
        "kernel: `auto` is cudnn for bfloat16 on a GPU, xla elsewhere; `cudnn` never falls back",
        choices=("auto", "xla", "cudnn"),
    )
    dtype: str = setting(
        "float32", "compute dtype; parameters stay float32", choices=("float32", "bfloat16")
    )
    unroll: bool = setting(True, "unroll the scan over layers: faster steps, slower compile")
    remat: str = setting(
        "none",
        "recomputed in the backward pass: `elementwise` all but matmuls, `block` whole blocks",
        choices=("none", "elementwise", "block"),
    )

    @property
    def sizes(self) -> Sizes:
        """The sizes that a placement's expressions may name."""
        return Sizes(self.n_layer, self.n_embd, self.init_std)


@dataclass(frozen=True, kw_only=True)
class _Preset:
    preset: str = setting(
        "pre_ln",
        "residual connections and norm placement: a preset",
        choices=PRESETS.keys(),
        otherwise=OWN,
    )
    module: str | None = setting(
        None, "importable Python module that registers connections, norms and presets of your own"
    )


# The axes of `Placement` without their defaults: unset, they are the preset's.
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
    """A preset, and the axes that override it (`placements.axes.Placement`); unset: the preset's.

    Attributes:
      preset: a name in `placements.PRESETS`. module: where more of them are registered.
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


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Text and tokens."""

    source: str = setting(
        "stdlib",
        "`shakespeare`, `stdlib`, a path or glob, a prepared folder, `hf:name[:config]@split`, "
        ".bin glob",
        path=True,
    )
    val_source: str | None = setting(
        None, "separate validation text; unset: split off the source", path=True
    )
    tokenizer: str = setting(
        "bytes",
        "`bytes`, `gpt2`, the path of a tokenizer.json, or `ids:N`: N decimal ids",
        path=True,
    )
    seq_len: int = count(1024, "tokens per sequence, at most `model.n_positions`", maximum=2**24)
    val_fraction: float = share(0.1, "share of documents held out for validation")
    document_separator: str | None = setting(
        None, "split documents at this text, such as `<|endoftext|>`, which is plain text otherwise"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, learning-rate schedule, and which parameters it trains."""

    name: str = setting(
        "adamw",
        "`adamw`, or `muon` for the blocks' matrices with AdamW for the rest",
        choices=("adamw", "muon"),
    )
    peak_lr: float = setting(6e-4, "learning rate after warm-up", above=0, maximum=1e30)
    schedule: str = setting(
        "cosine",
        "after the warm-up; `wsd` is constant, then linear over the last `decay_fraction`",
        choices=("cosine", "wsd", "linear", "inverse_sqrt", "constant"),
    )
    warmup_steps: int | None = setting(
        None,
        "steps of linear warm-up; unset: `warmup_fraction` of them",
        minimum=0,
        maximum=INT_MAX,
    )
    warmup_fraction: float = share(
        0.0, "linear warm-up as a share of `train.steps`, unless `warmup_steps` is set"
    )
    final_lr_ratio: float = setting(
        0.1, "last learning rate over the peak (not inverse_sqrt)", minimum=0, maximum=1
    )
    decay_fraction: float = setting(
        0.2, "share of the steps in which `wsd` decays", minimum=0, maximum=1
    )
    weight_decay: float = setting(
        0.1, "decoupled; on matrices and embeddings, by role", minimum=0, maximum=1000
    )
    b1: float = share(0.9, "Adam's first moment")
    b2: float = share(0.95, "Adam's second moment")
    eps: float = setting(1e-8, "Adam's epsilon", above=0, maximum=1)
    momentum: float = share(0.95, "Muon's (Nesterov) momentum")
    grad_clip: float = setting(
        1.0, "largest global gradient norm; 0: no clipping", minimum=0, maximum=1e30
    )
    skip_outliers: float | None = setting(
        None,
        "skip steps whose gradient norm is this many std above its running mean, after 50 steps",
        above=0,
        maximum=1e30,
    )
    max_skipped: int = count(20, "stop after this many skipped steps in a row")
    frozen: tuple[str, ...] = setting(
        (), "patterns of frozen parameters: `wte`, `blocks.0`, `*.bias`"
    )
    lr_multipliers: tuple[str, ...] = setting(
        (), "factors on the learning rate of parameters: `pattern=factor`"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch, length of the run, and how often it reports, evaluates and saves."""

    steps: int = count(1000, "training steps in total")
    batch_size: int = count(32, "sequences per step, over all devices and micro-batches")
    accumulation: int = count(1, "micro-batches per step")
    log_every: int = count(10, "steps between rows of metrics")
    eval_every: int = count(250, "steps between evaluations (also at 0 and at the end)")
    eval_tokens: int | None = count(
        None, "validation tokens used; unset: all of them", maximum=2**48
    )
    checkpoint_every: int = count(250, "steps between checkpoints (also at the end)")
    keep_checkpoints: int = count(2, "latest checkpoints kept, in addition to the best")
    patience: int | None = count(
        None, "stop after this many evaluations without a lower validation loss"
    )
    sample_tokens: int = setting(
        400, "length of the sample at the end; 0: none", minimum=0, maximum=1_000_000
    )
    init_from: str | None = setting(
        None, "first weights: another run's directory, also as DIR@step or DIR@best", path=True
    )
    deterministic: bool = setting(False, "on a GPU: kernels that repeat to the bit, slower")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices."""

    data: int | None = count(
        None, "devices that share the batch; unset: as many as divide it", maximum=2**16
    )


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Where wandb keeps its copy of a run."""

    mode: str | None = setting(
        None,
        "unset: WANDB_MODE, else online if logged in, else offline",
        choices=("online", "offline", "disabled"),
    )
    project: str | None = setting(None, "wandb project; unset: WANDB_PROJECT, else gpt2_jax")
    entity: str | None = setting(None, "wandb team or user", longest=128)
    name: str | None = setting(
        None, "wandb run name; unset: WANDB_NAME, else the work directory's", longest=128
    )
    group: str | None = setting(None, "wandb group", longest=128)
    tags: tuple[str, ...] = setting((), "wandb tags")


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What is recorded besides metrics.jsonl."""

    diagnostics_every: int | None = count(
        None,
        "steps between diagnostics by depth (stream, sublayers, gradients, attention, loss without "
        "each block), also at 0 and at the end; unset: none",
    )
    wandb: WandbConfig = WandbConfig()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole config; the defaults are GPT-2 124M on `stdlib`."""

    seed: int = setting(
        0, "initial weights, dropout and the order of the data", minimum=0, maximum=2**32 - 1
    )
    model: ModelConfig = ModelConfig()
    placement: PlacementConfig = PlacementConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    track: TrackConfig = TrackConfig()
