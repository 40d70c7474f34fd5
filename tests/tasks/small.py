"""Tiny runs of every task, on made-up data of a few words."""

import json
import random

from gpt2_jax.config import Config, replace
from tests import tools

TASKS = ("mlm", "translate", "tag", "classify", "answer", "sft")
COLORS = ("red", "green", "blue")
THINGS = ("dog", "cat", "bird", "tree", "house")


def write_data(folder, task, n=96):
    """Writes training and validation records of a task, and returns the fields that name them."""
    if task == "mlm":
        (folder / "text.txt").write_text(tools.make_text(6_000))
        return {"data.source": str(folder / "text.txt")}
    if task == "translate":
        return {"data.source": "toy:reverse", "data.val_source": "toy:reverse#val"}
    if task == "tag":
        return {"data.source": "toy:tags", "data.val_source": "toy:tags#val"}
    record, random_ = RECORDS[task], random.Random(task)
    for name, size in (("train", n), ("val", n // 4), ("test", n // 4)):
        lines = [json.dumps(record(random_)) for _ in range(size)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "data.source": str(folder / "train.jsonl"),
        "data.val_source": str(folder / "val.jsonl"),
        "data.test_source": str(folder / "test.jsonl"),
    }


def _label(random_):
    color = random_.choice(COLORS)
    words = [color, *random_.choices(THINGS, k=random_.randint(1, 9))]
    random_.shuffle(words)
    return {"text": " ".join(words), "label": color}


def _question(random_):
    things = random_.sample(THINGS, 3)
    context = " ".join(f"{random_.choice(COLORS)} {thing}" for thing in things)
    number = random_.randrange(3)
    answer = context.split()[2 * number]
    start = sum(len(word) + 1 for word in context.split()[: 2 * number])
    answers = [{"text": answer, "answer_start": start}]
    return {"question": f"which {things[number]}", "context": context, "answers": answers}


def _completion(random_):
    words = random_.choices(THINGS, k=random_.randint(1, 3))
    return {"prompt": " ".join(words) + " =", "completion": " " + words[-1]}


RECORDS = {"classify": _label, "answer": _question, "sft": _completion}

ARCHITECTURES = {"translate": "encoder_decoder", "sft": "decoder"}


def small(task, data, **changes) -> Config:
    """Returns a config of one block per tower and width 16; changes by name with `__` for dots."""
    defaults = {
        "task.name": task,
        "model.architecture": ARCHITECTURES.get(task, "encoder"),
        "model.n_layer": 1,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.n_positions": 48,
        "model.vocab_multiple": 8,
        "model.unroll": False,
        "data.tokenizer": "wordpiece:200",
        "data.seq_len": 48,
        "train.batch_size": 8,
        "train.steps": 12,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 4,
        "optimizer.peak_lr": 1e-2,
        "optimizer.schedule": "constant",
        "eval.beam": 2 if task == "translate" else 5,
        "track.wandb.mode": "disabled",
        "mesh.data": 2,
    }
    given = {name.replace("__", "."): value for name, value in changes.items()}
    if "train.epochs" in given:
        del defaults["train.steps"]
    return replace(Config(), defaults | data | given)
