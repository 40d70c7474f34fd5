"""Every config field with its type, default, range and meaning: a frozen dataclass per section.

Nothing here imports jax, so mistakes are reported at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.fields import INT_MAX, setting
from gpt2_jax.placements.axes import AXES, OWN, Placement
from gpt2_jax.placements.catalogue import PRESETS
from gpt2_jax.placements.expressions import Sizes
from gpt2_jax.placements.resolve import resolve
from gpt2_jax.placements.towers import ARCHITECTURES, TowerShape, make_towers

count = partial(setting, minimum=1, maximum=INT_MAX)  # steps, sequences and the like
share = partial(setting, minimum=0, below=1)


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


TASKS = {
    "lm": "next tokens of text",
    "mlm": "masked tokens of text",
    "translate": "a target sequence for a source, such as a translation or a summary",
    "tag": "a tag per word, such as named entities",
    "classify": "a label per text",
    "answer": "the part of a text that answers a question, or has a label",
    "sft": "the completions of prompts, or the assistant's part of conversations",
}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the model predicts."""

    name: str = setting(
        "lm",
        "; ".join(f"`{name}`: {meaning}" for name, meaning in TASKS.items()),
        choices=TASKS.keys(),
    )
    class_weights: tuple[str, ...] = setting(
        (),
        "with `classify` and `tag`: loss weights of labels, `LABEL=WEIGHT`, or `balanced`: inverse "
        "to their number of training examples",
    )
    mask_share: float = setting(
        0.15, "with `mlm`: share of the tokens that are predicted", above=0, below=1
    )
    whole_words: bool = setting(False, "with `mlm`: choose whole words instead of tokens")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The head of a fine-tuning task; the task chooses its kind."""

    pool: str = setting(
        "cls",
        "what a label of a whole sequence is read from: its first token (`cls`), or the mean over "
        "its tokens",
        choices=("cls", "mean"),
    )
    transform: bool | None = setting(
        None,
        "a dense layer before the output matrix: for masked tokens with the MLP's activation and a "
        "norm, for labels of sequences with tanh; unset: yes, unless `pool=mean`",
    )
    n_labels: int | None = count(
        None, "labels that are predicted; unset: those of the training data", maximum=2**20
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data, validation data and tokenizer."""

    source: str = setting(
        "stdlib",
        "`shakespeare`, `stdlib`, a path or glob of text files, a prepared folder, "
        "`hf:name[:config]@split`, a glob of .bin files, a URL or glob of remote files such as "
        "`s3://bucket/*.jsonl`, or several of them with weights: "
        "`mixture:SOURCE=WEIGHT,SOURCE=WEIGHT`",
        path=True,
    )
    val_source: str | None = setting(
        None, "separate validation data; unset: held out from `source`", path=True
    )
    test_source: str | None = setting(
        None,
        "test data of a task, which `gpt2-jax eval` scores; unset: the validation data",
        path=True,
    )
    columns: str | None = setting(
        None,
        "columns of a task's files, `NAME=COLUMN,NAME=COLUMN`: a name, a number from 0, or a path "
        "in JSON; unset: the names in the task's guide",
        longest=1000,
    )
    tag_scheme: str = setting(
        "iob2", "of tags in the files; models always predict iob2", choices=("iob1", "iob2")
    )
    tokenizer: str = setting(
        "bytes",
        "`bytes`, `gpt2`, the path of a tokenizer.json, `ids:N` for text of decimal ids below N, "
        "or `bpe:N` or `wordpiece:N`, trained on the training data",
        path=True,
    )
    chat_template: str | None = setting(
        None,
        "with `task.name=sft`: Jinja template of conversations; unset: the tokenizer's",
        path=True,
    )
    seq_len: int = count(1024, "tokens per sequence, at most `model.n_positions`", maximum=2**24)
    source_len: int | None = count(
        None, "with `task.name=translate`: tokens per source; unset: `seq_len`", maximum=2**24
    )
    layout: str | None = setting(
        None,
        "`packed`: several examples per row; `padded`: one; unset: `packed` if a task has a target "
        "per token",
        choices=("packed", "padded"),
    )
    lengths: tuple[str, ...] = setting(
        (),
        "with `layout=padded`: lengths of rows below `seq_len`, for batches of shorter examples",
    )
    too_long: str = setting(
        "cut", "examples longer than `seq_len`: `cut`, or `refuse`", choices=("cut", "refuse")
    )
    val_fraction: float = share(0.1, "share of documents held out for validation")
    document_separator: str | None = setting(
        None,
        "split documents at this text, such as `<|endoftext|>`; unset: it is ordinary text",
    )
    stream_files: int = count(
        8,
        "remote files of `source` that are shuffled together; up to twice as many are kept on disk",
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
        "learning rate after warm-up; `wsd`: constant, then linear over the last `decay_fraction`",
        choices=("cosine", "wsd", "linear", "inverse_sqrt", "constant"),
    )
    warmup_steps: int | None = setting(
        None,
        "steps of linear warm-up; unset: `warmup_fraction` of `train.steps`",
        minimum=0,
        maximum=INT_MAX,
    )
    warmup_fraction: float = share(
        0.0, "linear warm-up as a fraction of `train.steps`, if `warmup_steps` is unset"
    )
    final_lr_ratio: float = setting(
        0.1, "final over peak learning rate (except inverse_sqrt)", minimum=0, maximum=1
    )
    decay_fraction: float = setting(
        0.2, "fraction of `train.steps` over which `wsd` decays", minimum=0, maximum=1
    )
    weight_decay: float = setting(
        0.1, "decoupled weight decay of matrices and embeddings", minimum=0, maximum=1000
    )
    b1: float = share(0.9, "decay rate of Adam's first moment")
    b2: float = share(0.95, "decay rate of Adam's second moment")
    eps: float = setting(1e-8, "Adam's epsilon", above=0, maximum=1)
    momentum: float = share(0.95, "Nesterov momentum of Muon")
    moments_dtype: str = setting(
        "float32",
        "stored dtype of the moments of matrices and embeddings; updates compute in float32",
        choices=("float32", "bfloat16", "int8"),
    )
    grad_clip: float = setting(
        1.0, "clip gradients to this global norm; 0: no clipping", minimum=0, maximum=1e30
    )
    skip_outliers: float | None = setting(
        None,
        "after 50 steps, skip a step if its gradient norm is this many std above the running mean",
        above=0,
        maximum=1e30,
    )
    max_skipped: int = count(20, "stop after this many consecutive skipped steps")
    frozen: tuple[str, ...] = setting(
        (), "name patterns of frozen parameters, such as `wte`, `blocks.0`, `*.bias`"
    )
    lr_multipliers: tuple[str, ...] = setting(
        (), "learning-rate factors by name pattern: `pattern=factor`"
    )
    label_smoothing: float = share(
        0.0, "probability that the training loss spreads over all other tokens or labels"
    )
    sparsity: float = share(
        0.0,
        "share of the weights of each matrix of the blocks, the smallest of `train.init_from`, "
        "that is set to 0 before the first step and stays 0",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Batch size, number of steps, logging, evaluation and checkpoints."""

    steps: int = count(1000, "total number of steps")
    epochs: float | None = setting(
        None,
        "passes over the examples of a task, instead of `steps`",
        above=0,
        maximum=1e6,
    )
    batch_size: int = count(32, "sequences per step, summed over devices and micro-batches")
    accumulation: int = count(1, "micro-batches per step")
    micro_batch: str | None = setting(
        None,
        "`auto`: raise `accumulation` until a step fits in the devices' memory; unset: keep it",
        choices=("auto",),
    )
    log_every: int = count(10, "steps between rows of metrics.jsonl")
    eval_every: int = count(250, "steps between evaluations (also at 0 and at the end)")
    eval_tokens: int | None = count(
        None, "validation tokens per evaluation; unset: all", maximum=2**48
    )
    checkpoint_every: int = count(250, "steps between checkpoints (also at the end)")
    keep_checkpoints: int = count(2, "latest checkpoints to keep, in addition to the best")
    patience: int | None = count(
        None, "stop after this many evaluations without a lower validation loss"
    )
    sample_tokens: int = setting(
        400, "tokens of text sampled at the end; 0: none", minimum=0, maximum=1_000_000
    )
    z_loss: float = setting(
        0.0,
        "adds this times log^2 Z to the training loss, with Z the sum of exp(logits) (PaLM: 1e-4); "
        "validation losses are without it",
        minimum=0,
        maximum=1,
    )
    init_from: str | None = setting(
        None, "directory of a run to start the weights from: DIR, DIR@step or DIR@best", path=True
    )
    teacher: str | None = setting(
        None,
        "directory of a run whose predictions are learned as well: DIR, DIR@step or DIR@best",
        path=True,
    )
    teacher_weight: float = setting(
        0.5,
        "share of the training loss that compares predictions with those of `teacher`",
        minimum=0,
        maximum=1,
    )
    temperature: float = setting(
        2.0, "both models' logits are divided by this in that comparison", above=0, maximum=1000
    )
    deterministic: bool = setting(False, "use bitwise deterministic GPU kernels, which are slower")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """How predictions of a task are made and scored."""

    generate_every: int | None = count(
        None,
        "with `task.name=translate`: steps between evaluations of generated text, a multiple of "
        "`train.eval_every`; unset: only at the end",
    )
    beam: int = count(5, "hypotheses that beam search keeps; 1: greedy", maximum=64)
    length_penalty: float = setting(
        1.0,
        "exponent of the length by which a hypothesis' log-probability is divided; 0: none",
        minimum=-10,
        maximum=10,
    )
    score: str = setting("bleu", "what generated text is scored by", choices=("bleu", "rouge"))
    out_of_scope: str | None = setting(
        None,
        "with `task.name=classify`: label of texts that belong to no class, scored apart",
        longest=200,
    )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The device mesh; its number of devices is the product of the fields."""

    data: int | None = count(
        None,
        "devices to split the batch over; unset: all that are left and divide it",
        maximum=2**16,
    )
    fsdp: int | None = count(
        None,
        "devices to split the batch, parameters and optimizer state over; unset: 1, or those of "
        "`data` if the state does not fit in one device's memory",
        maximum=2**16,
    )
    tensor: int = count(
        1, "devices to split heads, hidden channels and the vocabulary over", maximum=2**16
    )


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Tracking with wandb."""

    mode: str | None = setting(
        None,
        "unset: WANDB_MODE, else online if logged in, else offline",
        choices=("online", "offline", "disabled"),
    )
    project: str | None = setting(None, "wandb project; unset: WANDB_PROJECT, else gpt2_jax")
    entity: str | None = setting(None, "wandb team or user", longest=128)
    name: str | None = setting(
        None, "wandb run name; unset: WANDB_NAME, else that of the work directory", longest=128
    )
    group: str | None = setting(None, "wandb group", longest=128)
    tags: tuple[str, ...] = setting((), "wandb tags")


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Diagnostics, profiling and wandb."""

    diagnostics_every: int | None = count(
        None,
        "steps between diagnostics by depth (stream, sublayers, gradients, attention, loss with "
        "each block ablated), also at 0 and at the end; unset: none",
    )
    profile: str | None = setting(
        None,
        "`start:stop`: trace the steps after step `start` up to step `stop`, and print where their "
        "time goes; unset: none",
        longest=32,
    )
    wandb: WandbConfig = WandbConfig()

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """The numbers of steps before and after the traced ones, None if none are traced.

        Raises:
          ValueError: if `profile` is not two numbers.
        """
        if self.profile is None:
            return None
        start, stop = map(int, self.profile.split(":"))
        return start, stop


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole config; the default is GPT-2 124M on `stdlib`."""

    seed: int = setting(
        0, "seed of initial weights, dropout and data order", minimum=0, maximum=2**32 - 1
    )
    model: ModelConfig = ModelConfig()
    placement: PlacementConfig = PlacementConfig()
    task: TaskConfig = TaskConfig()
    head: HeadConfig = HeadConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()  # noqa: RUF009 (it is frozen)
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()
    track: TrackConfig = TrackConfig()
