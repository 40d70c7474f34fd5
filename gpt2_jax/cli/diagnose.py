r"""Compares placements block by block, before training or at checkpoints.

gpt2-jax diagnose --config=configs/quickstart.py \
    --placements=pre_ln,post_ln,deepnorm --depths=6,12,24,48 --out=diagnosis
gpt2-jax diagnose --workdirs=runs/a,runs/b --out=diagnosis
gpt2-jax diagnose --config=translate --config.data.source='train.{en,de}' \
    --placements=pre_ln_xavier,post_ln,deepnorm --depths=3,6 --out=diagnosis
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from gpt2_jax import cli
from gpt2_jax.ablation.diagnosis import BY_BLOCK, WHOLE, Diagnosis, diagnose, diagnose_start
from gpt2_jax.ablation.diagnosis_figures import plot_by_block, plot_by_depth
from gpt2_jax.config import replace, validated
from gpt2_jax.config.check import check
from gpt2_jax.config.model_sections import ModelConfig
from gpt2_jax.data.run_data import RunData
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.fields import INT_MAX
from gpt2_jax.files import atomic_folder, check_creatable, check_empty, disk_errors
from gpt2_jax.placements import PRESETS
from gpt2_jax.tasks.losses import AnyBatch
from gpt2_jax.train.compiled_step import memory_errors
from gpt2_jax.train.distributed.mesh import configure_devices
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef, find_checkpoint, parse_step
from gpt2_jax.train.storage.open_run import (
    open_run,
    open_run_data,
    open_run_examples,
    open_training_data,
    resolve_on,
)

_CONFIG = cli.define_config("config file, for models before training")
_PLACEMENTS = flags.DEFINE_list("placements", None, "presets; default: the config's")
_DEPTHS = flags.DEFINE_list(
    "depths",
    None,
    "numbers of blocks, which set model.n_layer and, with an encoder and a decoder, "
    "model.n_encoder_layer too; default: the config's",
)
_WORKDIRS = flags.DEFINE_list("workdirs", None, "run directories, instead of --config")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; default: the latest")
_BATCHES = flags.DEFINE_integer(
    "batches", 16, "batches over which gradients are averaged", 1, 100_000
)
_OUT = flags.DEFINE_string("out", None, "folder to create for CSV files and figures")
flags.DEFINE_string("module", None, cli.MODULE)


def main(argv: list[str]) -> None:
    """Writes the folder and prints one line per model."""
    del argv
    if not _OUT.value:
        raise UserError("pass --out, the folder to create")
    out = Path(_OUT.value)
    check_empty(out, f"--out={out}")
    _check_flags()
    with disk_errors(f"--out={out}"):
        check_creatable(out.parent)
    found = []
    print(f"{'model':<28} {'blocks':>6} {'step':>7}  " + "  ".join(WHOLE))
    with memory_errors():
        for one in _runs() if _WORKDIRS.value else _starts():
            found.append(one)
            numbers = "  ".join(f"{one.whole[key]:>{len(key)}.4g}" for key in WHOLE)
            blocks = "+".join(map(str, one.depths.values()))
            print(f"{one.name:<28} {blocks:>6} {one.step:>7}  {numbers}", flush=True)
    write(found, out)
    print(f"written to {out}: {' '.join(sorted(p.name for p in out.iterdir()))}")


def _check_flags() -> None:
    if (_CONFIG.value is None) == (not _WORKDIRS.value):
        raise UserError("pass --config for models before training, or --workdirs for trained ones")
    if _CONFIG.value is not None:
        if _STEP.value is not None:
            raise UserError("--step selects a checkpoint: pass --workdirs instead of --config")
        if _CONFIG.value.train.init_from is not None:
            raise UserError(
                "train.init_from is not used before training; pass it as --workdirs, or leave it "
                "unset in a copy of the config"
            )
    elif _PLACEMENTS.value or _DEPTHS.value:
        raise UserError("--placements and --depths select models before training: pass --config")
    for flag in (_PLACEMENTS, _DEPTHS, _WORKDIRS):
        values = flag.value or []
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise UserError(f"--{flag.name} has {twice[0]} twice")


def _starts() -> Iterator[Diagnosis]:
    """Yields every placement at every depth before training, after checking all of them."""
    configs = []
    base = cli.read_config(_CONFIG)
    if base.train.epochs is not None:  # their steps are unknown until the data are open, and unused
        base = replace(base, {"train.steps": INT_MAX})
    for name in _PLACEMENTS.value or [base.placement.preset]:
        if name not in PRESETS:
            raise UserError(f"--placements has {name!r}{suggestion(name, PRESETS)}")
        for sizes in _sizes(base.model):
            changes = sizes | {"placement.preset": name, "model.unroll": False}  # compiles faster
            config = replace(base, changes)
            check(config)
            configs.append(config)
    first = configs[0]
    configure_devices(first.train, first.mesh)
    corpus, tokenizer = open_training_data(first)
    resolved = [resolve_on(config, corpus, tokenizer)[0] for config in configs]
    batches = read_batches(corpus, first.data.seq_len, first.train.batch_size, first.seed, 0)
    for config in resolved:
        yield diagnose_start(config.placement.preset, config, batches)


def _sizes(model: ModelConfig) -> list[dict[str, int]]:
    """Returns the fields that each of `--depths` changes; one without changes by default."""
    if _DEPTHS.value is None:
        return [{}]
    if wrong := [text for text in _DEPTHS.value if not text.isdecimal()]:
        raise UserError(f"--depths has {wrong[0]!r}, which is not a number of blocks")
    depths = [validated("model.n_layer", int(text), "--depths") for text in _DEPTHS.value]
    fields = [tower.kind.depth for tower in model.towers]
    return [{f"model.{field}": depth for field in fields} for depth in depths]


def _runs() -> Iterator[Diagnosis]:
    """Yields every run at its checkpoint, on the batches that it would train on next."""
    workdirs = _WORKDIRS.value or []
    for workdir in workdirs:  # report a missing checkpoint before measuring any
        find_checkpoint(CheckpointRef(workdir, parse_step(_STEP.value)))
    for workdir in workdirs:
        run = open_run(workdir, _STEP.value)
        is_text = run.config.task.name == "lm"
        corpus: RunData = (open_run_data if is_text else open_run_examples)(run, workdir)
        seq_len, batch_size = run.config.data.seq_len, run.config.train.batch_size
        batches = read_batches(corpus, seq_len, batch_size, run.config.seed, run.step)
        name = f"{run.config.placement.preset} ({workdir})"
        yield diagnose(name, run.config, run.model_def, run.mesh, run.params, run.step, batches)


def read_batches(
    corpus: RunData, seq_len: int, batch_size: int, seed: int, first: int
) -> list[AnyBatch]:
    """Returns `--batches` batches of training data from step `first`."""
    sampler = corpus.sampler(seq_len, batch_size, seed)
    return [sampler.batch(first + i) for i in range(_BATCHES.value)]


def write(found: Sequence[Diagnosis], out: Path) -> None:
    """Writes blocks.csv, models.csv and the figures to a folder, completely or not at all."""
    with atomic_folder(out) as folder:
        _write_csv(folder / "models.csv", WHOLE, [[*_key(d), *d.whole.values()] for d in found])
        _write_csv(folder / "blocks.csv", *_block_table(found))
        kinds = sorted({kind for d in found for kind in d.depths.items()})
        for tower, depth in kinds:
            ones = [d for d in found if d.depths.get(tower) == depth]
            name = "_".join(word for word in ("blocks", tower, str(depth)) if word)
            plot_by_block(ones, folder / name, tower, found)
        if len(kinds) > len({tower for tower, _ in kinds}):
            plot_by_depth(found, folder / "depth")


def _block_table(found: Sequence[Diagnosis]) -> tuple[list[str], list[list]]:
    """Returns the columns and rows of blocks.csv.

    Models of one tower have no name for it. A number that a block does not have is empty.
    """
    towers = [(d, tower, numbers) for d in found for tower, numbers in d.by_block.items()]
    is_named = any(tower for _, tower, _ in towers)
    names = [name for name in BY_BLOCK if any(name in numbers for _, _, numbers in towers)]
    rows = []
    for d, tower, numbers in towers:
        for l in range(d.depths[tower]):
            values = [numbers[name][l] if name in numbers else "" for name in names]
            rows.append([*_key(d), *[tower] * is_named, l + 1, *values])
    return ["tower"] * is_named + ["block", *names], rows


def _key(diagnosis: Diagnosis) -> list[str | int]:
    return [diagnosis.name, diagnosis.n_layer, diagnosis.step]


def _write_csv(path: Path, columns: Sequence[str] | dict[str, str], rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "n_layer", "step", *columns])
        writer.writerows(rows)
