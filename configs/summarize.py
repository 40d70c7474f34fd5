r"""Trains an encoder-decoder to summarize: the task of `translate`, with long sources and ROUGE.

    gpt2-jax train --config=summarize --workdir=runs/summarize \
        --config.data.source=train.jsonl --config.data.val_source=dev.jsonl \
        --config.data.test_source=test.jsonl

Lines are {"source": ..., "target": ...}; a list of texts as target has several references. The
model has 3 + 3 Pre-LN blocks of width 128. Sources longer than 384 tokens are cut. Batch: 16 rows
of 384 and 64 positions per step; 10 epochs.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.task.name = "translate"
    config.model.architecture = "encoder_decoder"
    config.model.n_layer = 3
    config.model.n_encoder_layer = 3
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 384
    config.model.dropout = 0.2
    config.placement.preset = "pre_ln_xavier"  # sinusoids would drown smaller embeddings
    config.placement.positions = "sinusoidal"

    config.data.tokenizer = "bpe:8000"
    config.data.source_len = 384
    config.data.seq_len = 64

    config.optimizer.peak_lr = 2e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.label_smoothing = 0.1

    config.train.epochs = 10.0
    config.train.batch_size = 16
    config.train.eval_every = 250
    config.train.checkpoint_every = 250
    config.eval.score = "rouge"
    return config
