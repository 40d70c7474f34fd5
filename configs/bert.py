r"""Pretrains a BERT-type encoder with masked language modeling, sized for CPUs.

    gpt2-jax train --config=bert --workdir=runs/bert --config.data.source='corpus/*.txt'

The model is BERT's: Post-LN, a norm after the embedding, learned positions, uncased WordPiece; with
4 blocks of width 256 and a trained vocabulary of 8,000. 15% of the tokens are predicted. Batch:
32 windows x 128 = 4,096 tokens per step; 4,000 steps = 16.4M tokens.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.task.name = "mlm"
    config.model.architecture = "encoder"
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 256
    config.model.n_positions = 128
    config.model.token_types = 2
    config.model.dropout = 0.1

    config.placement.preset = "post_ln"
    config.placement.embedding_norm = True
    config.placement.norm_eps = 1e-12
    config.placement.activation = "gelu"
    config.placement.init = "normal"
    config.placement.embedding_std = "std"
    config.placement.embedding_multiplier = "1"

    config.data.tokenizer = "wordpiece:8000"
    config.data.seq_len = 128

    config.optimizer.peak_lr = 1e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01

    config.train.steps = 4000
    config.train.batch_size = 32
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    return config
