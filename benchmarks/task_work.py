"""Prepares what `benchmarks.tasks` times: the same batches and weights for both sides.

A work is a folder: `facts.json` has what the other side has to build, `config.json` our config, and
`LAYOUT.npz` the batches of a layout. `model` is a Hugging Face folder, and `run` the same as a run.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.task_arrays import Arrays, load_arrays, save_arrays
from gpt2_jax.config import Config, freeze, replace, resolve, to_json, with_labels, with_n_inner
from gpt2_jax.config.check import check
from gpt2_jax.data.batch import ExampleBatch, PairBatch, TokenBatch, Tokens
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model.definition import define_model
from gpt2_jax.tasks.data import ExampleData
from gpt2_jax.train.pretrained import adopt_model, open_source
from gpt2_jax.train.storage.checkpoint import save_params
from gpt2_jax.train.storage.open_run import open_examples

ROOT = Path(__file__).parent.parent
N_BATCHES = 8  # per turn
PADDED_ROWS = {"tag": 16, "translate": 160}  # with about as many tokens as the config's packed rows
PADDED_LENGTHS = {"tag": ("32", "64"), "translate": ("16", "24", "32")}
VOCABULARY = 4000
N_SENTENCES = 20_000
# Mean and standard deviation of log(length) in Multi30k's training set, English to German, in
# pieces of a BPE of 4,000: of sources, and of targets relative to their sources.
LOG_SOURCE, LOG_RATIO = (2.695, 0.331), (0.055, 0.186)
LONGEST = 62
SEARCHED_ROWS, SEARCHED_LENGTH, SHORTEST_SOURCE = 32, 24, 10
SEARCH = {"n_beams": 5, "alpha": 1.0}
MODEL_FACTS = ("n_layer", "n_encoder_layer", "n_head", "n_embd", "n_inner", "vocab_size", "dropout")
OPTIMIZER_FACTS = ("peak_lr", "b1", "b2", "eps", "weight_decay", "grad_clip", "label_smoothing")

Changes = Mapping[str, Any]  # of a config, by dotted name


def config_of(name: str, *arguments: str) -> Config:
    """Returns the config of a file in `configs/`."""
    return freeze(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](*arguments))


def sentences(n: int) -> list[list[str]]:
    """Returns n made-up sources and their targets, as texts for the tokenizer `ids:4000`."""
    random = np.random.default_rng(0)
    log_source = random.normal(*LOG_SOURCE, n)
    sides = [np.exp(log_source), np.exp(log_source + random.normal(*LOG_RATIO, n))]
    text = lambda length: " ".join(map(str, random.integers(0, VOCABULARY - 1, length)))
    return [[text(int(x)) for x in np.clip(np.rint(side), 1, LONGEST)] for side in sides]


def prepare_tag(folder: Path, model: Path, source: str, changes: Changes) -> None:
    """Prepares the fine-tuning of a BERT.

    Args:
      model: a folder in Hugging Face's format. source: of the training examples.
    """
    import_model(str(model), str(folder / "run"))
    (folder / "model").symlink_to(model.absolute())
    fixed = {"data.source": source, "train.init_from": None, "train.epochs": None}
    config = replace(config_of("ner", "finetune"), fixed | dict(changes))
    say = lambda line: print(line, file=sys.stderr)
    config = adopt_model(config, open_source(str(folder / "run")), say)
    data = open_examples(config)
    _write_steps(folder, with_labels(resolve(config, data.tokenizer.size), data.labels), data)


def prepare_translate(folder: Path, changes: Changes) -> None:
    """Prepares the training of a translation model on made-up sentences."""
    for side, lines in zip(("source", "target"), sentences(N_SENTENCES), strict=True):
        (folder / f"pairs.{side}").write_text("\n".join(lines) + "\n")
    fixed = {
        "data.source": f"{folder}/pairs.{{source,target}}",
        "data.tokenizer": f"ids:{VOCABULARY}",
        "train.epochs": None,
    }
    config = replace(config_of("translate"), fixed | dict(changes))
    data = open_examples(config)
    _write_steps(folder, resolve(config, data.tokenizer.size), data)


def _write_steps(folder: Path, config: Config, data: ExampleData) -> None:
    """Writes the config, the first batches of both layouts, and what the peer has to build."""
    check(config)
    task = config.task.name
    for layout, rows in (("padded", PADDED_ROWS[task]), ("packed", config.train.batch_size)):
        lengths = PADDED_LENGTHS[task] if layout == "padded" else ()
        changes = {"data.layout": layout, "data.lengths": lengths}
        sampler = with_fields(data, config=replace(config, changes).data).sampler(
            config.data.seq_len, rows, config.seed
        )
        batches = [named(sampler.batch(step)) for step in range(N_BATCHES)]
        save_arrays(folder / f"{layout}.npz", batches)
    facts = {name: getattr(config.model, name) for name in MODEL_FACTS}
    facts |= {name: getattr(config.optimizer, name) for name in OPTIMIZER_FACTS}
    facts |= {"activation": config.placement.resolve().activation, "labels": data.labels}
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "config.json").write_text(to_json(config))


def prepare_beam(folder: Path, changes: Changes) -> None:
    """Writes a Marian with random weights, in both formats, and sources for it.

    It shares no embeddings: with a tied head, texts would repeat one token. Sources are long
    enough for all texts to have the same limit of their length, which few end before.
    """
    fixed = {
        "placement.preset": "post_ln",
        "placement.positions": "sinusoidal_halves",
        "model.tie_head": False,
        "model.share_embeddings": False,
        "model.init_std": 0.1,
        "model.matmul_dtype": None,
        "data.tokenizer": f"ids:{VOCABULARY}",
        "train.epochs": None,
    }
    config = with_n_inner(replace(config_of("translate"), fixed | dict(changes)))
    config = resolve(config, VOCABULARY)
    check(config)
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(to_json(config))
    model_def = define_model(config.model, config.placement)
    save_params(folder / "run" / "weights", jax.jit(model_def.init)(jax.random.key(0)))
    export_model(str(folder / "run"), str(folder / "model"))
    sources, _ = sentences(3 * SEARCHED_ROWS)
    long = [text for text in sources if len(text.split()) >= SHORTEST_SOURCE]
    facts = {"sources": long[:SEARCHED_ROWS], "length": SEARCHED_LENGTH, "end": VOCABULARY - 1}
    (folder / "facts.json").write_text(json.dumps(facts | SEARCH))


def named(batch: ExampleBatch) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch by name; the inverse of `batch_of`."""
    assert isinstance(batch, PairBatch | TokenBatch)
    found = {"targets": batch.targets_BT, "weights": batch.weights_BT}
    pair = isinstance(batch, PairBatch)
    sides = {"source_": batch.source, "": batch.target} if pair else {"": batch.inputs}
    for prefix, tokens in sides.items():
        found |= {f"{prefix}ids": tokens.ids_BT, f"{prefix}segments": tokens.segments_BT}
        if tokens.types_BT is not None:
            found[f"{prefix}types"] = tokens.types_BT
    return found


def batch_of(arrays: Arrays) -> ExampleBatch:
    """Returns a batch from its arrays by name."""

    def side(prefix: str) -> Tokens:
        return Tokens(*(arrays.get(prefix + name) for name in ("ids", "segments", "types")))

    targets = arrays["targets"], arrays["weights"]
    if "source_ids" in arrays:
        return PairBatch(side("source_"), side(""), *targets)
    return TokenBatch(side(""), *targets)


class Counts(NamedTuple):
    """What stored batches have.

    Attributes:
      batches: their number.
      tokens: those on the predicted side, without padding.
      padding: share of the positions, on both sides.
    """

    batches: int
    tokens: int
    padding: float


def count(path: Path) -> Counts:
    """Returns the counts of the batches in a file."""
    batches = load_arrays(path)
    tokens = sum(int((arrays["segments"] > 0).sum()) for arrays in batches)
    sides = [x for arrays in batches for name, x in arrays.items() if name.endswith("segments")]
    real, positions = sum(int((x > 0).sum()) for x in sides), sum(x.size for x in sides)
    return Counts(len(batches), tokens, 1 - real / positions)
