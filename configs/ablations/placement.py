r"""Which norm placement and residual connection trains best, each at its own learning rate.

    python -m gpt2_jax.ablate.campaign --config=configs/ablations/placement.py \
        --workdir=runs/placement

Models of 8 layers and width 96 (0.9M parameters) on the bytes of Python's standard library, with
AdamW: 800 updates of 8 sequences x 128 = 0.8M bytes a cell. Every variant is tried at six learning
rates a factor of 2 apart, and at more where the best one is an edge, with seed 0; then trained with
six fresh seeds at its best rate.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign import Campaign, Search, grid

PLACEMENTS = (
    *("pre_ln", "post_ln", "peri_ln", "olmo2", "deepnorm", "rezero", "lns"),
    *("parallel_gptj", "x0_lambda", "hyper_connections"),
)


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 8
    config.model.n_head = 4
    config.model.n_embd = 96
    config.model.n_positions = 128
    config.data.source = "stdlib"
    config.data.seq_len = 128
    config.optimizer.peak_lr = 2.0**-8
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 1 / 8
    config.optimizer.final_lr_ratio = 0.0
    config.train.steps = 800
    config.train.batch_size = 8
    config.train.accumulation = 2
    config.train.eval_every = 200
    config.train.eval_tokens = 65_536
    config.train.checkpoint_every = 400
    config.track.diagnostics_every = 800
    return config


def get_campaign() -> Campaign:
    return Campaign(
        variants=grid({"model.placement": PLACEMENTS}),
        baseline={"model.placement": "pre_ln"},
        search=Search(lowest=2.0**-11, n=6),
        seeds=(1, 2, 3, 4, 5, 6),
    )
