"""What a run prints before its first and after its last step, and how it describes itself."""

from __future__ import annotations

import math
import shutil
import textwrap
from datetime import timedelta
from typing import Any

import jax

from gpt2_jax import config as configs
from gpt2_jax.config import Config
from gpt2_jax.config.sections import PlacementConfig, TrainConfig
from gpt2_jax.config.task_sections import LOSS
from gpt2_jax.data.dataset import Dataset
from gpt2_jax.data.mixture import short_source
from gpt2_jax.data.run_data import RunData
from gpt2_jax.errors import counted
from gpt2_jax.model.builder import product_dtype
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.placements import AXES, PRESETS
from gpt2_jax.placements.resolve import differences
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.tasks.task import Task
from gpt2_jax.track.metrics import Row, is_higher_better, read_rows
from gpt2_jax.track.throughput import peak_flops
from gpt2_jax.track.wandb_log import WandbOptions
from gpt2_jax.train.compiled_step import CompiledStep
from gpt2_jax.train.distributed.mesh import DATA, n_row_devices
from gpt2_jax.train.distributed.sharding import make_layout
from gpt2_jax.train.storage.rundir import RunDirectory

SAME = 1e-3  # below this relative difference, only one of nats per token and per byte is shown
# Fields of run.json that are copied into wandb's config.
DESCRIBED = (
    *("parameters", "flops_per_token", "flops", "devices", "platform", "attention"),
    *("peak_bytes_per_device", "corpus"),
)


def facts(config: Config, compiled: CompiledStep) -> dict[str, Any]:
    """Returns the counts and the hardware that run.json records."""
    tokens = compiled.tokens_per_step * config.train.steps
    devices, attention = compiled.devices, compiled.attention
    found = counts(config, compiled.model_def, devices, attention, compiled.peak_bytes, tokens)
    return found | {"mesh": dict(compiled.mesh.shape)}


def mesh_change(info: dict[str, Any], compiled: CompiledStep) -> str | None:
    """Returns what a new mesh means for a resumed run; None if it is the same, or not recorded.

    Args:
      info: the content of run.json.
    """
    old, new = info.get("mesh"), dict(compiled.mesh.shape)
    if old in (None, new):
        return None
    return (
        f"the mesh is now {_mesh(new)} instead of {_mesh(old)}: the order of the data stays the "
        "same, but losses differ in their last digits from those of an uninterrupted run"
    )


def _trained(compiled: CompiledStep) -> str:
    """Returns how many parameters are trained, with vocabulary padding; '' if all are."""
    if compiled.shapes.frozen is None:
        return ""
    return (
        f" ({sum(math.prod(x.shape) for x in jax.tree.leaves(compiled.shapes.params)):,} trained)"
    )


def _mesh(shape: dict[str, int]) -> str:
    return " x ".join(f"{name}={n}" for name, n in shape.items())


def counts(
    config: Config,
    model_def: ModelDef,
    devices: list[str],
    attention: str,
    peak_bytes: int | None,
    tokens: int,
) -> dict[str, Any]:
    """Returns `facts` for a run without a `CompiledStep`.

    Args:
      tokens: number of tokens predicted in the whole run.
    """
    return {
        "parameters": model_def.n_params(),
        "placement": {name: getattr(model_def.placement, name) for name in AXES},
        "flops_per_token": model_def.flops_per_token(config.data.seq_len),
        "flops": model_def.flops_per_token(config.data.seq_len) * tokens,
        "devices": devices,
        "platform": jax.default_backend(),
        "attention": attention,
        "peak_bytes_per_device": peak_bytes,
    }


def tokens_per_step(config: Config) -> int:
    """Returns the number of tokens predicted per step."""
    return config.train.batch_size * config.data.seq_len


def total_tokens(config: Config) -> int:
    """Returns the number of tokens predicted in the whole run."""
    return tokens_per_step(config) * config.train.steps


def start_report(
    config: Config,
    compiled: CompiledStep,
    corpus: RunData,
    first_step: int,
    step_seconds: float | None,
    real_share: float | None = None,
) -> str:
    """Returns the lines printed before the first step.

    Args:
      step_seconds: measured time per step; None if it was not measured.
      real_share: share of the positions of a task's rows that are not padding; None for text.
    """
    model, train = config.model, config.train
    known, devices = facts(config, compiled), n_row_devices(compiled.mesh)
    batch = compiled.tokens_per_step
    tokens = batch * train.steps
    peak = peak_flops(known["devices"][0])
    lines = {
        "model": f"{config.placement.preset}{_overrides(config.placement)}, "
        f"{counted(model.depth, 'layer')}, {counted(model.n_head, 'head')}, width {model.n_embd}: "
        f"{known['parameters']:,} parameters{_trained(compiled)}, computing in "
        f"{_precision(compiled.model_def)}",
        "data": f"{config.data.source} as {config.data.tokenizer}: {corpus.describe()}",
        **_mixture(corpus, tokens),
        "batch": f"{train.batch_size} {_rows(config, corpus, batch, real_share)} per step: "
        f"{counted(devices, 'device')} x {train.accumulation} accumulated x "
        f"{train.batch_size // devices // train.accumulation}",
        "length": f"{counted(train.steps, 'step')} = {tokens:,} tokens"
        + ("" if corpus.streams else f" = {tokens / corpus.n_tokens('train'):.2f} epochs"),
        "best": _best(train),
        "compute": f"{_si(known['flops_per_token'])}FLOP per token, "
        f"{_si(known['flops'])}FLOP in total",
        "devices": f"{compiled.mesh.size} x {known['devices'][0]} ({known['platform']}), "
        + (f"peak {_si(peak)}FLOP/s each" if peak else "peak unknown, so no MFU")
        + (f", in {jax.process_count()} processes" if jax.process_count() > 1 else ""),
        **_sharding(compiled),
        "attention": f"{compiled.attention} (found in the compiled step)",
        "memory": f"{_si(compiled.peak_bytes)}B per device at the step's peak"
        if compiled.peak_bytes
        else "not reported by the compiler on this platform",
        "expected": _expected(train.steps - first_step, step_seconds)
        + f"; compiled in {compiled.compile_seconds:.1f} s",
    }
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    wrap = textwrap.TextWrapper(width, subsequent_indent=" " * 11, break_on_hyphens=False)
    return "\n".join(wrap.fill(f"{name:<10} {text}") for name, text in lines.items())


def best_of(best: Row | None, config: Config) -> dict[str, Any] | None:
    """Returns the best evaluation as run.json records it; None if there is none."""
    best_by = config.train.best_by or LOSS
    return best and {"by": best_by, "step": best["step"], "value": best[f"val/{best_by}"]}


def _best(train: TrainConfig) -> str:
    """Describes what the best checkpoint and `train.patience` go by."""
    best_by = train.best_by or LOSS
    text = f"{'highest' if is_higher_better(best_by) else 'lowest'} val/{best_by}"
    if train.patience is None:
        return text
    return f"{text}; training stops after {train.patience} evaluations without a better one"


def _precision(model_def: ModelDef) -> str:
    dtype = model_def.cfg.dtype
    rounded = product_dtype(model_def.cfg, model_def.target)
    products = "" if rounded in (None, dtype) else f", matrix products of {rounded}"
    return f"{dtype}{products}"


def _rows(config: Config, corpus: RunData, tokens: int, real_share: float | None) -> str:
    """Describes the rows of a batch and their tokens."""
    if isinstance(corpus, ExampleData):
        share = "" if real_share is None else f" ({real_share:.0%} of the positions)"
        return f"{corpus.describe_rows()}, about {tokens:,} tokens without padding{share},"
    return f"sequences x {config.data.seq_len} = {tokens:,} tokens"


def _mixture(corpus: RunData, tokens: int) -> dict[str, str]:
    """Returns the line on the sources of a mixture; none for a single corpus."""
    if not isinstance(corpus, Dataset) or not corpus.is_mixture:
        return {}
    described = []
    for part in corpus.parts:
        line = f"{part.name} {float(part.share):.1%} of rows"
        if n_train := part.corpus.n_tokens("train"):
            epochs = float(part.share) * tokens / n_train
            line += f", {n_train:,} tokens, {epochs:.2f} epochs"
        described.append(line)
    return {"mixture": "; ".join(described)}


def _sharding(compiled: CompiledStep) -> dict[str, str]:
    """Returns the line on sharded parameters; none if every device holds all of them."""
    shape = dict(compiled.mesh.shape)
    if compiled.mesh.size == shape[DATA]:
        return {}
    whole = make_layout(compiled.model_def, compiled.mesh).whole
    kept = f"; whole on every device, as no axis divides them: {', '.join(whole)}" if whole else ""
    return {"mesh": f"{_mesh(shape)}, parameters and optimizer state split{kept}"}


def _overrides(placement: PlacementConfig) -> str:
    """Returns the axes that differ from the preset's, in parentheses."""
    changed = differences(placement.resolve(), PRESETS[placement.preset])
    listed = ", ".join(f"{name}={value}" for name, value in changed.items())
    return f" ({listed})" if listed else ""


def _expected(steps: int, seconds: float | None) -> str:
    if seconds is None:
        return counted(steps, "step")
    whole = timedelta(seconds=round(steps * seconds))
    return f"{whole} of training at {seconds * 1e3:.1f} ms per step"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} Z"


def print_end(directory: RunDirectory, task: Task) -> None:
    """Prints the sample, the last losses and scores, and the contents of the directory."""
    rows = read_rows(directory.metrics_path)
    if directory.sample_path.exists():
        print(
            f"\n--- a sample ---\n{directory.sample_path.read_text(encoding='utf-8').rstrip()}\n---"
        )
    for line in result_lines(rows, task, directory.best_by()):
        print(line)
    names = sorted(p.name + "/" * p.is_dir() for p in directory.path.iterdir())
    print(f"left in {directory.path}: {' '.join(n for n in names if n[0] != '.')}")


def result_lines(rows: list[Row], task: Task, best_by: str | None = None) -> list[str]:
    """Returns lines with the last validation loss, and the training loss if it is newer.

    A validation loss is in nats per target of the task, for text also per byte, and followed by
    the scores that the task shows.

    Args:
      best_by: as in `train.best_by`; a score that is shown as well.
    """
    trained = next((row for row in reversed(rows) if row.get("train/loss") is not None), None)
    scored = next((row for row in reversed(rows) if row.get("val/loss") is not None), None)
    if scored is None or (trained is not None and trained["step"] > scored["step"]):
        lines = []
        if trained is not None:
            loss = trained["train/loss"]
            at = f"(step {trained['step']})"
            lines.append(f"training loss {loss:.4f} nats per {task.target} {at}")
        if scored is not None:
            shown = _score(scored, task, best_by)
            lines.append(f"last validated at step {scored['step']}: {shown}")
        return lines
    return [f"validation loss {_score(scored, task, best_by)} (step {scored['step']})"]


def _score(row: Row, task: Task, best_by: str | None) -> str:
    loss, bits = row["val/loss"], row.get("val/bits_per_byte")
    if bits is None:
        scores = task.describe(row, best_by)
        return f"{loss:.4f} nats per {task.target}" + (f"; {scores}" if scores else "")
    per_byte = bits * math.log(2)
    if math.isclose(per_byte, loss, rel_tol=SAME):
        return f"{loss:.4f} nats or {bits:.4f} bits per byte"
    return f"{loss:.4f} nats per token; {per_byte:.4f} nats or {bits:.4f} bits per byte"


def curve_title(config: Config, directory: RunDirectory) -> str:
    """Returns the title of the loss curve: the run, its placement and its dataset."""
    name = short_source(config.data.source)
    title = f"{directory.path.absolute().name}: {config.placement.preset} on {name}"
    return title if len(title) <= 80 else f"{title[:79]}…"


def wandb_config(config: Config, directory: RunDirectory, model_def: ModelDef) -> dict[str, Any]:
    """Returns wandb's config: the run's, with all placement axes and parts of run.json."""
    described = configs.to_dict(config)
    described["placement"] |= {name: getattr(model_def.placement, name) for name in AXES}
    info = directory.read_info()
    run = {name: info[name] for name in DESCRIBED if name in info}
    start = info["starts"][-1] if info.get("starts") else {}
    run |= {name: start[name] for name in ("python", "versions", "commit") if name in start}
    return described | {"run": run}


def wandb_options(config: Config, directory: RunDirectory, is_main: bool = True) -> WandbOptions:
    """Returns wandb's settings from the config and the run directory.

    Args:
      is_main: whether this process logs to wandb.
    """
    given = config.track.wandb
    return WandbOptions(
        run_id=directory.wandb_id(),
        workdir=directory.path,
        mode=given.mode if is_main else "disabled",
        project=given.project,
        entity=given.entity,
        name=given.name,
        group=given.group,
        tags=configs.words(given.tags),
        job_type="train",
    )
