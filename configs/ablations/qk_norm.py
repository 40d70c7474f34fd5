r"""Does a norm on queries and keys allow training at larger learning rates?

    gpt2-jax ablate --config=configs/ablations/qk_norm.py --workdir=runs/qk_norm

Wortsman et al. 2023 (2309.14322) report this for larger models. The variants are GPT-2's placement
unchanged, with a norm on q and k, and with a norm on v as well (as in HybridNorm). Because the
question is about the largest learning rate that trains, eight are tried, each twice the previous
one; those near the best are tried with four seeds, followed by ten fresh seeds. Model and text are
those of configs/ablations/placement.py: 0.9M parameters, 0.8M bytes per run.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Search, Study, grid


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


def get_study() -> Study:
    return Study(
        variants=grid({"placement.norm_sites": ("pre", "pre+qk | pre", "pre+qkv | pre")}),
        baseline={"placement.norm_sites": "pre"},
        search=Search(lowest=2.0**-10, n=8, seeds=(0, 100, 101, 102)),
        seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        smallest_difference=0.005,
    )
