"""A byte-level GPT of 0.8M parameters on Python's standard library: a look around in two minutes.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The text is what every machine already has: the sources and documentation of the running
interpreter's standard library, about 12 MB, read as bytes. Batch: 8 sequences x 128 = 1,024 bytes
an update, in 2 parts of 4 (on a CPU small parts stay in its caches); 1,200 updates = 1.2 MB, a
tenth of an epoch. Result: val/loss 1.41 nats a byte (2.04 bits); 60 to 105 s on two cores.
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
