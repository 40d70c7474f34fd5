r"""Which placements keep their best learning rate as the model grows deeper?

    python -m gpt2_jax.ablate.campaign --config=configs/ablations/residual_scale_depth.py \
        --workdir=runs/depth

Four placements at 4, 8, 16 and 32 layers of width 64 (0.2M to 1.6M parameters), each compared with
GPT-2's at the same depth: DeepNorm and LNS (scales by depth), and CompleteP, whose point is that
the best learning rate of 4 layers is that of 32. 400 steps of 8 sequences x 128 = 0.4M bytes per
run; six learning rates a factor of 2 apart, and more where losses still fall at an end; nine fresh
seeds.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablate.campaign import Campaign, Search, crossed, grid

BASE = {"model.base_n_layer": 4, "model.base_n_embd": 64}  # where CompleteP changes nothing
COMPLETEP = {"name": "placement=completep", "model.placement": "completep"} | BASE


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 64
    config.model.n_positions = 128
    config.model.unroll = False  # 32 blocks compile in seconds, not in a minute
    config.data.source = "stdlib"
    config.data.seq_len = 128
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 1 / 8
    config.optimizer.final_lr_ratio = 0.0
    config.train.steps = 400
    config.train.batch_size = 8
    config.train.accumulation = 2
    config.train.eval_every = 200
    config.train.eval_tokens = 65_536
    config.train.checkpoint_every = 200
    config.track.diagnostics_every = 400
    return config


def get_campaign() -> Campaign:
    return Campaign(
        variants=crossed(
            grid({"model.n_layer": (4, 8, 16, 32)}),
            [*grid({"model.placement": ("pre_ln", "deepnorm", "lns")}), COMPLETEP],
        ),
        baseline={"model.placement": "pre_ln"},
        search=Search(lowest=2.0**-11, n=6),
        seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9),
        smallest_difference=0.005,
    )
