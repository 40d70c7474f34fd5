"""Trains an encoder to classify texts.

python train.py --config=configs/classify.py --workdir=runs/classify \
        --config.data.source=train.jsonl --config.data.val_source=dev.jsonl
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    c = configs.default()
    c.task.name = "classify"
    c.model.architecture = "encoder"
    c.model.n_layer = 2
    c.model.n_head = 4
    c.model.n_embd = 128
    c.model.n_positions = 64
    c.model.dropout = 0.2
    c.head.pool = "mean"
    c.data.tokenizer = "bpe:3000"
    c.data.seq_len = 48
    c.data.lengths = ("12", "24")
    c.train.batch_size = 64
    c.train.epochs = 8.0
    c.train.eval_every = 500
    c.train.log_every = 50
    c.train.checkpoint_every = 1000
    c.optimizer.peak_lr = 2e-3
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_fraction = 0.05
    c.optimizer.final_lr_ratio = 0.0
    return c
