"""Every config field with its type, default, range and meaning: a frozen dataclass per section.

Nothing here imports jax, so mistakes are reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_jax.config.model_sections import ModelConfig, PlacementConfig
from gpt2_jax.config.task_sections import SCORES, DataConfig, EvalConfig, HeadConfig, TaskConfig
from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.fields import INT_MAX, count, setting, share


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
        None, "stop after this many evaluations without a better one, by `best_by`"
    )
    best_by: str | None = setting(
        None,
        "what the best checkpoint and `patience` go by: `loss`, or a score of the task; unset: "
        "`entity_f1_strict` (`tag`), `accuracy` (`classify`), `answer_f1` or `span_f1` (`answer`), "
        "`bleu` or `rougeL` (`translate` with `eval.generate_every`), otherwise `loss`",
        choices=SCORES,
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
    tune: TuneConfig = TuneConfig()
    eval: EvalConfig = EvalConfig()
    mesh: MeshConfig = MeshConfig()
    track: TrackConfig = TrackConfig()
