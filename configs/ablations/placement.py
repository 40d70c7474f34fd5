r"""Which norm placement and residual connection trains best, each at its own learning rate?

    gpt2-jax ablate --config=configs/ablations/placement.py --workdir=runs/placement

Models with 8 layers of width 96 (0.9M parameters) are trained on the bytes of Python's standard
library with AdamW: 800 steps of 8 sequences x 128 = 0.8M bytes per run. Each variant is tried at
six learning rates, each twice the previous one, and at more if losses still fall at an end; those
near the best are tried with four seeds. Each variant is then trained with nine fresh seeds, the
fewest that can show a difference in nine comparisons, at its best learning rate and at all others
that the search could not rule out. Result: docs/ablations/placement/README.md (331 runs, 13 hours
on two busy CPU cores).
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Search, Study, grid

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


def get_study() -> Study:
    return Study(
        variants=grid({"placement.preset": PLACEMENTS}),
        baseline={"placement.preset": "pre_ln"},
        search=Search(lowest=2.0**-11, n=6),
        seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9),
        smallest_difference=0.005,
    )
