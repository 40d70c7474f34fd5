r"""Compares placements block by block, before training or at checkpoints.

gpt2-jax diagnose --config=configs/quickstart.py \
    --placements=pre_ln,post_ln,deepnorm --depths=6,12,24,48 --out=diagnosis
gpt2-jax diagnose --workdirs=runs/a,runs/b --out=diagnosis
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from gpt2_jax import cli
from gpt2_jax.ablation.diagnosis import BY_BLOCK, WHOLE, Diagnosis, diagnose, diagnose_start
from gpt2_jax.ablation.diagnosis_figures import plot_by_block, plot_by_depth
from gpt2_jax.config import replace, resolve, validated
from gpt2_jax.config.check import check
from gpt2_jax.config.task_rules import check_is_lm
from gpt2_jax.data.batch import Batch
from gpt2_jax.data.dataset import Dataset
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.files import atomic_folder, check_creatable, check_empty, disk_errors
from gpt2_jax.placements import PRESETS
from gpt2_jax.train.compiled_step import memory_errors
from gpt2_jax.train.distributed.mesh import configure_devices
from gpt2_jax.train.storage.checkpoint_ref import CheckpointRef, find_checkpoint, parse_step
from gpt2_jax.train.storage.open_run import open_data, open_run, open_run_data
from gpt2_jax.train.storage.rundir import RunDirectory

_CONFIG = cli.define_config("config file, for models before training")
_PLACEMENTS = flags.DEFINE_list("placements", None, "presets; default: the config's")
_DEPTHS = flags.DEFINE_list("depths", None, "numbers of blocks; default: the config's")
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
            print(f"{one.name:<28} {one.n_layer:>6} {one.step:>7}  {numbers}", flush=True)
    write(found, out)
    print(f"written to {out}: {' '.join(sorted(p.name for p in out.iterdir()))}")


def _check_flags() -> None:
    if (_CONFIG.value is None) == (not _WORKDIRS.value):
        raise UserError("pass --config for models before training, or --workdirs for trained ones")
    if _CONFIG.value is not None:
        if _STEP.value is not None:
            raise UserError("--step selects a checkpoint: pass --workdirs instead of --config")
        if _CONFIG.value.train.init_from is not None:
            raise UserError("train.init_from is not used before training; pass it as --workdirs")
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
    check_is_lm(base.task, "gpt2-jax diagnose")
    for name in _PLACEMENTS.value or [base.placement.preset]:
        if name not in PRESETS:
            raise UserError(f"--placements has {name!r}{suggestion(name, PRESETS)}")
        for depth in _depths(base.model.n_layer):
            sizes = {"placement.preset": name, "model.n_layer": depth}
            config = replace(base, sizes | {"model.unroll": False})  # compiles faster
            check(config)
            configs.append(config)
    first = configs[0]
    configure_devices(first.train, first.mesh)
    corpus, tokenizer = open_data(first.data)
    batches = read_batches(corpus, first.data.seq_len, first.train.batch_size, first.seed, 0)
    for config in configs:
        resolved = resolve(config, tokenizer.size, tokenizer.end_of_text)
        yield diagnose_start(config.placement.preset, resolved, batches)


def _depths(default: int) -> list[int]:
    depths = _DEPTHS.value or [str(default)]
    if wrong := [text for text in depths if not text.isdecimal()]:
        raise UserError(f"--depths has {wrong[0]!r}, which is not a number of blocks")
    return [validated("model.n_layer", int(text), "--depths") for text in depths]


def _runs() -> Iterator[Diagnosis]:
    """Yields every run at its checkpoint, on the batches that it would train on next."""
    workdirs = _WORKDIRS.value or []
    for workdir in workdirs:  # report a missing checkpoint before measuring any
        find_checkpoint(CheckpointRef(workdir, parse_step(_STEP.value)))
        check_is_lm(RunDirectory(workdir).read_config().task, f"{workdir}: gpt2-jax diagnose")
    for workdir in workdirs:
        run = open_run(workdir, _STEP.value)
        seq_len, batch_size = run.config.data.seq_len, run.config.train.batch_size
        corpus = open_run_data(run, workdir)
        batches = read_batches(corpus, seq_len, batch_size, run.config.seed, run.step)
        name = f"{run.config.placement.preset} ({workdir})"
        yield diagnose(name, run.config, run.model_def, run.mesh, run.params, run.step, batches)


def read_batches(
    corpus: Dataset, seq_len: int, batch_size: int, seed: int, first: int
) -> list[Batch]:
    """Returns `--batches` batches (B, T+1) of training text from step `first`."""
    sampler = corpus.sampler(seq_len, batch_size, seed)
    return [sampler.batch(first + i) for i in range(_BATCHES.value)]


def write(found: Sequence[Diagnosis], out: Path) -> None:
    """Writes blocks.csv, models.csv and the figures to a folder, completely or not at all."""
    with atomic_folder(out) as folder:
        _write_csv(folder / "models.csv", WHOLE, [[*_key(d), *d.whole.values()] for d in found])
        rows = [
            [*_key(d), l, *(d.by_block[name][l - 1] for name in BY_BLOCK)]
            for d in found
            for l in range(1, d.n_layer + 1)
        ]
        _write_csv(folder / "blocks.csv", ["block", *BY_BLOCK], rows)
        depths = sorted({d.n_layer for d in found})
        for depth in depths:
            ones = [d for d in found if d.n_layer == depth]
            plot_by_block(ones, folder / f"blocks_{depth}", found)
        if len(depths) > 1:
            plot_by_depth(found, folder / "depth")


def _key(diagnosis: Diagnosis) -> list[str | int]:
    return [diagnosis.name, diagnosis.n_layer, diagnosis.step]


def _write_csv(path: Path, columns: Sequence[str] | dict[str, str], rows: list[list]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "n_layer", "step", *columns])
        writer.writerows(rows)
