"""A byte-level GPT with 0.8M parameters on Tiny Shakespeare: a first run in one or two minutes.

    gpt2-jax train --config=quickstart --workdir=runs/quickstart

The text is karpathy/char-rnn's, 1,115,394 bytes of ASCII, included in the package; its last tenth
is held out for validation. Batch: 8 sequences x 128 = 1,024 bytes per step, in 2 micro-batches of 4
(small ones stay in a CPU's caches); 1,200 steps = 1.2 MB, 1.2 epochs. Result: val/loss 1.654 nats
per byte (2.386 bits) on all of the held-out text. nanoGPT's CPU example, of the same size and with
half the context, reaches 1.88 (its README; 2,000 steps of 768 characters). The same model and steps
took 60 to 105 s on two cores.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 128

    config.data.source = "shakespeare"
    config.data.tokenizer = "bytes"
    config.data.seq_len = 128

    config.optimizer.name = "muon"
    config.optimizer.peak_lr = 5e-3
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 1 / 12
    config.optimizer.final_lr_ratio = 0.0

    config.train.steps = 1200
    config.train.batch_size = 8
    config.train.accumulation = 2
    config.train.eval_every = 300
    config.train.checkpoint_every = 300
    return config
