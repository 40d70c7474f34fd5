r"""Trains an encoder-decoder to translate.

    gpt2-jax train --config=translate --workdir=runs/translate \
        --config.data.source='train.{en,de}' --config.data.val_source='val.{en,de}' \
        --config.data.test_source='test.{en,de}'

The braces name the files of source and target, with a sentence per line. The model has 3 + 3 Pre-LN
blocks of width 128 and a BPE vocabulary of 4,000 for both sides, trained on both. Sentences are
packed into rows. Batch: 48 rows x 64 positions per side, about 3,000 target tokens per step; 25
epochs. Result on Multi30k English-German: 38.5 BLEU in 4,366 steps, of which two
idle CPU cores do about 220 per minute (docs/tasks).
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
    config.model.n_positions = 64
    config.model.dropout = 0.15
    config.model.matmul_dtype = "auto"
    config.placement.preset = "pre_ln_xavier"  # sinusoids would drown smaller embeddings
    config.placement.positions = "sinusoidal"

    config.data.tokenizer = "bpe:4000"
    config.data.seq_len = 64

    config.optimizer.peak_lr = 3e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.08
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.label_smoothing = 0.1

    config.train.epochs = 25.0
    config.train.batch_size = 48
    config.train.eval_every = 750
    config.train.checkpoint_every = 750
    return config
