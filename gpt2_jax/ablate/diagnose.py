r"""Placements beside each other, block by block, before training or at checkpoints.

python -m gpt2_jax.ablate.diagnose --config=configs/quickstart.py \
    --placements=pre_ln,post_ln,deepnorm --depths=6,12,24,48 --out=diagnosis
python -m gpt2_jax.ablate.diagnose --workdirs=runs/a,runs/b --out=diagnosis
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from gpt2_jax import cli
from gpt2_jax import config as configs
from gpt2_jax.ablate.diagnosis import BY_BLOCK, WHOLE, Diagnosis, diagnose, diagnose_start
from gpt2_jax.ablate.figures import plot_by_block, plot_by_depth
from gpt2_jax.config_check import check
from gpt2_jax.data.corpus import open_corpus
from gpt2_jax.data.sampler import Sampler
from gpt2_jax.errors import UserError, suggestion
from gpt2_jax.files import check_creatable, disk_errors, whole_folder
from gpt2_jax.model.placements import PRESETS
from gpt2_jax.train.mesh import configure_devices
from gpt2_jax.train.program import memory_errors
from gpt2_jax.train.restore import find_checkpoint, open_run
from gpt2_jax.train.rundir import check_corpus

_CONFIG = cli.define_config("config file of the models to start")
_PLACEMENTS = flags.DEFINE_list("placements", None, "presets; unset: the config's")
_DEPTHS = flags.DEFINE_list("depths", None, "numbers of blocks; unset: the config's")
_WORKDIRS = flags.DEFINE_list("workdirs", None, "runs instead, each at a checkpoint")
_STEP = flags.DEFINE_string("step", None, "checkpoint: a step, or best; unset: the latest")
_BATCHES = flags.DEFINE_integer(
    "batches", 16, "batches that gradients are averaged over", 1, 100_000
)
_OUT = flags.DEFINE_string("out", None, "folder to make: CSV files and figures")


def main(argv: list[str]) -> None:
    """Writes the folder and prints a line for each model."""
    del argv
    if not _OUT.value:
        raise UserError("give --out, the folder to make")
    out = Path(_OUT.value)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already; choose another, or remove it")
    _check_flags()
    with disk_errors(f"--out={out}"):
        check_creatable(out.parent)
    found = []
    print(f"{'model':<28} {'blocks':>6} {'update':>7}  " + "  ".join(WHOLE))
    with memory_errors():
        for one in _runs() if _WORKDIRS.value else _starts():
            found.append(one)
            numbers = "  ".join(f"{one.whole[key]:>{len(key)}.4g}" for key in WHOLE)
            print(f"{one.name:<28} {one.n_layer:>6} {one.step:>7}  {numbers}", flush=True)
    write(found, out)
    print(f"left in {out}: {' '.join(sorted(p.name for p in out.iterdir()))}")


def _check_flags() -> None:
    """Refuses flags that exclude each other or would do nothing."""
    if (_CONFIG.value is None) == (not _WORKDIRS.value):
        raise UserError("give --config for models before training, or --workdirs for trained ones")
    if _CONFIG.value is not None:
        if _STEP.value is not None:
            raise UserError("--step is of a checkpoint: give --workdirs in place of --config")
        if _CONFIG.value.train.init_from is not None:
            raise UserError("train.init_from is not used before training: give it as --workdirs")
    elif _PLACEMENTS.value or _DEPTHS.value:
        raise UserError("--placements and --depths are of models before training: give --config")
    for flag in (_PLACEMENTS, _DEPTHS, _WORKDIRS):
        values = flag.value or []
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise UserError(f"--{flag.name} has {twice[0]} twice")


def _starts() -> Iterator[Diagnosis]:
    """Yields every placement at every depth; what makes no sense is said before the first."""
    chosen = []
    for name in _PLACEMENTS.value or [_CONFIG.value.model.placement]:
        if name not in PRESETS:
            raise UserError(f"--placements has {name!r}{suggestion(name, PRESETS)}")
        for depth in _depths(_CONFIG.value):
            config = _CONFIG.value.copy_and_resolve_references()
            config.model.placement, config.model.n_layer = name, depth
            config.model.unroll = False  # the same figures, sooner compiled
            check(config)
            chosen.append(config)
    batches, vocabulary = read_batches(chosen[0], 0)
    for config in chosen:
        yield diagnose_start(config.model.placement, configs.resolve(config, vocabulary), batches)


def _depths(config: ConfigDict) -> list[int]:
    asked = _DEPTHS.value or [str(config.model.n_layer)]
    if wrong := [text for text in asked if not text.isdecimal()]:
        raise UserError(f"--depths has {wrong[0]!r}, which is no number of blocks")
    return [configs.validated("model.n_layer", int(text), "--depths") for text in asked]


def _runs() -> Iterator[Diagnosis]:
    """Yields every run at its checkpoint, on the batches that would come next."""
    workdirs = _WORKDIRS.value or []
    for workdir in workdirs:  # what is wrong with any is said before the first is measured
        find_checkpoint(workdir, _STEP.value)
    for workdir in workdirs:
        run = open_run(workdir, _STEP.value)
        batches, _ = read_batches(run.config, run.step, run.corpus, workdir)
        name = f"{run.config.model.placement} ({workdir})"
        yield diagnose(name, run.config, run.structure, run.mesh, run.params, run.step, batches)


def read_batches(
    config: ConfigDict, first: int, known: str | None = None, workdir: str = ""
) -> tuple[list[np.ndarray], int]:
    """Returns `--batches` batches (B, T+1) of a run from step `first` on, and the vocabulary.

    Args:
      known: hash of the text that the run in `workdir` was trained on.
    """
    configure_devices(config)
    data = config.data
    corpus, tokenizer = open_corpus(
        data.source,
        data.val_source,
        data.tokenizer,
        data.val_fraction,
        data.document_separator,
    )
    check_corpus(known, corpus, f"data.source={data.source}", Path(workdir))
    assert corpus.train is not None
    sampler = Sampler(corpus.train, data.seq_len, config.train.batch_size, config.seed)
    return [sampler.batch(first + i) for i in range(_BATCHES.value)], tokenizer.size


def write(found: Sequence[Diagnosis], out: Path) -> None:
    """Writes blocks.csv, models.csv and the figures into a folder that is whole or absent."""
    with whole_folder(out) as folder:
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


if __name__ == "__main__":
    app.run(cli.guarded(main), flags_parser=cli.parse_flags)
