r"""Which placements keep the same best learning rate as depth grows?

    gpt2-jax ablate --config=configs/ablations/residual_scale_depth.py --workdir=runs/depth

Four placements at 4, 8, 16 and 32 layers of width 64 (0.2M to 1.6M parameters), each compared with
GPT-2's at the same depth: DeepNorm and LNS, which scale by depth, and CompleteP, whose best
learning rate should be the same at 4 and 32 layers. Each run has 400 steps of 8 sequences x 128 =
0.4M bytes. Each variant is tried at six learning rates, each twice the previous one, and at more if
losses still fall at an end, and then trained with nine fresh seeds.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Search, Study, crossed, grid

BASE = {"placement.base_n_layer": 4, "placement.base_n_embd": 64}  # CompleteP's factors are 1 here
COMPLETEP = {"name": "placement=completep", "placement.preset": "completep"} | BASE


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 64
    config.model.n_positions = 128
    config.model.unroll = False  # 32 blocks compile in seconds instead of a minute
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


def get_study() -> Study:
    return Study(
        variants=crossed(
            grid({"model.n_layer": (4, 8, 16, 32)}),
            [*grid({"placement.preset": ("pre_ln", "deepnorm", "lns")}), COMPLETEP],
        ),
        baseline={"placement.preset": "pre_ln"},
        search=Search(lowest=2.0**-11, n=6),
        seeds=(1, 2, 3, 4, 5, 6, 7, 8, 9),
        smallest_difference=0.005,
    )
