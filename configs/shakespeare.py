r"""A byte-level GPT of 0.8M parameters on tiny Shakespeare: nanoGPT's CPU shape.

    python train.py --config=configs/shakespeare.py --workdir=runs/shakespeare \
        --config.data.source=path/to/input.txt

The text is karpathy/char-rnn's data/tinyshakespeare/input.txt, 1.1 MB, whose last tenth validates.
Batch: 12 sequences x 64 = 768 bytes an update; 2,000 updates = 1.5 MB, one and a half epochs.
Result: val/loss 1.77 nats a byte on the whole validation part, where nanoGPT's settings give 1.88
(characters, 20 random batches); see the README for times beside it.
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
