r"""Trains an encoder to tag words, such as names: `--config=ner` from scratch, or `ner:finetune`.

    gpt2-jax train --config=ner:finetune --workdir=runs/ner --config.train.init_from=runs/bert \
        --config.data.source=train.conll --config.data.val_source=dev.conll \
        --config.data.test_source=test.conll

Files have a word and its tag per line, with an empty line after each sentence; `data.columns` names
other columns, or spans of characters. Sentences are packed into rows. From scratch: two blocks of
width 128; 16 rows x 64 tokens per step, 12 epochs. Fine-tuning: sizes and tokenizer are those of
the run; 4 rows x 128 tokens per step, 4 epochs. Result from scratch on RESTAURANTS-8K's spans: F1
0.91 in 1,112 steps, about 100 s of CPU time (docs/tasks).
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError, suggestion

STARTS = ("scratch", "finetune")


def get_config(start: str = "scratch") -> ConfigDict:
    if start not in STARTS:
        raise UserError(f"configs/ner.py: {start!r} is not a start{suggestion(start, STARTS)}")
    config = configs.default()
    config.task.name = "tag"
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
    config.model.n_positions = 64
    config.model.dropout = 0.2

    config.data.tokenizer = "bpe:3000"
    config.data.seq_len = 64

    config.optimizer.peak_lr = 2e-3
    config.train.epochs = 12.0
    config.train.batch_size = 16


def _fine_tune(config: ConfigDict) -> None:
    config.model.dropout = 0.1
    config.data.seq_len = 128

    config.optimizer.peak_lr = 3e-4
    config.optimizer.weight_decay = 0.01
    config.train.init_from = "runs/bert"
    config.train.epochs = 4.0
    config.train.batch_size = 4
