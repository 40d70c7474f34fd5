r"""Does a norm on queries and keys let a model train at larger learning rates?

    python -m gpt2_jax.ablate.campaign --config=configs/ablations/qk_norm.py --workdir=runs/qk_norm

Wortsman et al. 2023 (2309.14322) say so of larger models. GPT-2's placement as it is, with a norm
on q and k, and with one on v as well (HybridNorm's), over eight learning rates a factor of 2 apart,
since it is the edge of what trains that is asked for, those near the best with four seeds; then ten
fresh seeds. Model and text are those of configs/ablations/placement.py: 0.9M parameters, 0.8M bytes
per run.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign import Campaign, Search, grid


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 8
    config.model.n_head = 4
    config.model.n_embd = 96
    config.model.n_positions = 128
    config.data.source = "stdlib"
    config.data.seq_len = 128
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
        variants=grid({"model.norms": ("pre", "pre+qk | pre", "pre+qkv | pre")}),
        baseline={"model.norms": "pre"},
        search=Search(lowest=2.0**-10, n=8, seeds=(0, 100, 101, 102)),
        seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        smallest_difference=0.005,
    )
