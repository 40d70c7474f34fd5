"""PyTorch's side of `benchmarks.tasks`: a process that is timed, on what `task_work` prepares.

    PYTHON -m benchmarks.task_peers WORK FOLDER MODE

MODE is `eager` or `compiled`. Needs torch, transformers and numpy.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.task_arrays import load_arrays
from benchmarks.turns import serve

IGNORED = -100  # targets without a loss
WIDTH_MULTIPLE = 16  # of sources, as on our side
Turn = Callable[[], object]


class Translation(nn.Module):
    """`torch.nn.Transformer` with sinusoids, one embedding for both sides and a head tied to it."""

    def __init__(self, facts: dict[str, Any], longest: int) -> None:
        super().__init__()
        width = facts["n_embd"]
        self.embedding = nn.Embedding(facts["vocab_size"], width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = nn.Dropout(facts["dropout"])
        self.register_buffer("positions", sinusoids(longest, width))
        activations = {"gelu_new": partial(functional.gelu, approximate="tanh")}
        self.transformer = nn.Transformer(
            width,
            facts["n_head"],
            facts["n_encoder_layer"],
            facts["n_layer"],
            facts["n_inner"],
            facts["dropout"],
            activations.get(facts["activation"], facts["activation"]),
            batch_first=True,
            norm_first=True,
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        scale = math.sqrt(self.embedding.embedding_dim)
        return self.dropout(scale * self.embedding(ids) + self.positions[: ids.shape[1]])

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        source_padding, padding = batch["source_segments"] == 0, batch["segments"] == 0
        length = batch["ids"].shape[1]
        y = self.transformer(
            self.embed(batch["source_ids"]),
            self.embed(batch["ids"]),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            tgt_is_causal=True,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=padding,
            memory_key_padding_mask=source_padding,
        )
        return functional.linear(y, self.embedding.weight)


class Tagging(nn.Module):
    """transformers' BERT with a head per token."""

    def __init__(self, facts: dict[str, Any], folder: Path) -> None:
        super().__init__()
        from transformers import BertForTokenClassification

        self.model = BertForTokenClassification.from_pretrained(
            folder / "model", num_labels=len(facts["labels"])
        )

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        types = batch.get("types")
        return self.model(batch["ids"], batch["segments"] > 0, token_type_ids=types).logits


def sinusoids(n: int, width: int) -> torch.Tensor:
    angles = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def load_batches(path: Path) -> list[dict[str, torch.Tensor]]:
    """Returns the batches of a layout; targets without a loss are `IGNORED`."""
    batches = []
    for arrays in load_arrays(path):
        has_loss = torch.tensor(arrays.pop("weights")) > 0
        batch = {name: torch.tensor(x).long() for name, x in arrays.items()}
        batches.append(batch | {"targets": torch.where(has_loss, batch["targets"], IGNORED)})
    return batches


def steps(folder: Path, work: str, mode: str) -> Turn:
    """Returns a function that takes a train step on each padded batch; returns the last loss."""
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    batches = load_batches(folder / "padded.npz")
    longest = max(batch[name].shape[1] for batch in batches for name in batch)
    torch.manual_seed(0)
    model = Tagging(facts, folder) if work == "tag" else Translation(facts, longest)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        facts["peak_lr"] / 10,  # PyTorch has no warm-up here
        (facts["b1"], facts["b2"]),
        facts["eps"],
        facts["weight_decay"],
        fused=True,
    )
    forward = torch.compile(model, dynamic=False) if mode == "compiled" else model

    def step(batch: dict[str, torch.Tensor]) -> float:
        logits, targets = forward(batch).flatten(0, 1), batch["targets"].flatten()
        smoothing = facts["label_smoothing"]
        loss = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        loss.backward()
        if facts["grad_clip"]:
            nn.utils.clip_grad_norm_(model.parameters(), facts["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return lambda: [step(batch) for batch in batches][-1]


def searches(folder: Path, mode: str) -> Turn:
    """Returns a function that searches for the targets of all sources, and returns them."""
    from transformers import MarianMTModel

    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    model = MarianMTModel.from_pretrained(folder / "model").eval()
    model.generation_config.forced_eos_token_id = None  # our texts end at the limit without it
    if mode == "compiled":
        model.forward = torch.compile(model.forward, dynamic=True)
    sources = [[*map(int, text.split()), facts["end"]] for text in facts["sources"]]
    width = -(-max(map(len, sources)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    ids = torch.tensor([row + [facts["end"]] * (width - len(row)) for row in sources])
    mask = torch.arange(width) < torch.tensor([len(row) for row in sources])[:, None]

    def turn() -> list[str]:
        found = model.generate(
            ids,
            attention_mask=mask.long(),
            num_beams=facts["n_beams"],
            length_penalty=facts["alpha"],
            early_stopping="never",
            max_new_tokens=facts["length"],
            do_sample=False,
        )
        return [text(row, facts["end"]) for row in found[:, 1:].tolist()]

    return turn


def text(ids: list[int], end: int) -> str:
    n = ids.index(end) if end in ids else len(ids)
    return " ".join(map(str, ids[:n]))


def main() -> None:
    work, folder, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    serve(searches(folder, mode) if work == "beam" else steps(folder, work, mode))


if __name__ == "__main__":
    main()
