"""A byte-level GPT with 0.8M parameters on Tiny Shakespeare, in the shape of nanoGPT's CPU example.

    gpt2-jax train --config=shakespeare --workdir=runs/shakespeare

The text is karpathy/char-rnn's data/tinyshakespeare/input.txt (1.1 MB, included in the package);
its last tenth is held out for validation. Batch: 12 sequences x 64 = 768 bytes per step; 2,000
steps = 1.5 MB, 1.5 epochs. Result: val/loss 1.77 nats per byte on all of the held-out text; nanoGPT
reaches 1.88 (characters, 20 random batches). See docs/benchmarks.md for the times of both.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 64
    config.data.source = "shakespeare"
    config.data.seq_len = 64
    config.optimizer.peak_lr = 4e-3
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.b2 = 0.99
    config.train.steps = 2000
    config.train.batch_size = 12
    config.train.eval_every = 2000
    config.train.checkpoint_every = 1000
    return config
