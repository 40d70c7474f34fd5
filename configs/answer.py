r"""Trains an encoder to find answers in texts: `--config=answer` from scratch, or `:finetune`.

    gpt2-jax train --config=answer:finetune --workdir=runs/answer \
        --config.train.init_from=runs/bert --config.data.source=train.json \
        --config.data.val_source=dev.json

Files are in SQuAD's format, or have a text with labeled spans per row (`data.columns`), which are
read as a question per label. Long contexts are cut, or with `data.doc_stride=128` read in
overlapping windows. From scratch: two blocks of width 128, for short texts; 64 questions
per step, 6 epochs. Fine-tuning: sizes and tokenizer are those of the run; 16 questions per step, 3
epochs.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError, suggestion

STARTS = ("scratch", "finetune")


def get_config(start: str = "scratch") -> ConfigDict:
    if start not in STARTS:
        raise UserError(f"configs/answer.py: {start!r} is not a start{suggestion(start, STARTS)}")
    config = configs.default()
    config.task.name = "answer"
    config.model.architecture = "encoder"

    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.final_lr_ratio = 0.0

    config.train.eval_every = 250
    config.train.checkpoint_every = 250
    if start == "scratch":
        _from_scratch(config)
    else:
        _fine_tune(config)
    return config


def _from_scratch(config: ConfigDict) -> None:
    config.model.n_layer = 2
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 128
    config.model.dropout = 0.2

    config.data.tokenizer = "bpe:3000"
    config.data.seq_len = 128
    config.data.lengths = ("24", "64")

    config.optimizer.peak_lr = 2e-3
    config.train.epochs = 6.0
    config.train.batch_size = 64


def _fine_tune(config: ConfigDict) -> None:
    config.model.dropout = 0.1
    config.data.seq_len = 384
    config.data.lengths = ("192",)

    config.optimizer.peak_lr = 1e-4
    config.optimizer.weight_decay = 0.01
    config.train.init_from = "runs/bert"
    config.train.epochs = 3.0
    config.train.batch_size = 16
