r"""Which placement trains a translation model best, each at its own learning rate?

    gpt2-jax ablate --config=configs/ablations/translation.py --workdir=runs/translation \
        --config.data.source='train.{en,de}' --config.data.val_source='val.{en,de}'

Pre-LN, Post-LN and DeepNorm in an encoder-decoder with 4 + 4 blocks of width 64, all with the
initial values of Vaswani et al. 2017 (DeepNorm scales them by depth). 1,500 steps of 8 rows x 64
positions per side, about 0.74M target tokens per run: with a third of them, DeepNorm ignores the
source at the learning rate that suits it best. The loss decides; BLEU of greedy translations is
shown.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.ablation.study import Search, Study, grid


def get_config() -> ConfigDict:
    config = configs.default()
    config.task.name = "translate"
    config.model.architecture = "encoder_decoder"
    config.model.n_layer = 4
    config.model.n_encoder_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 64
    config.model.n_positions = 64
    config.model.dropout = 0.1
    config.placement.preset = "pre_ln_xavier"
    config.placement.positions = "sinusoidal"

    config.data.tokenizer = "bpe:2000"
    config.data.seq_len = 64

    config.optimizer.peak_lr = 2.0**-8
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.label_smoothing = 0.1

    config.train.steps = 1500
    config.train.batch_size = 8
    config.train.eval_every = 500
    config.train.checkpoint_every = 1500
    config.eval.beam = 1
    config.track.diagnostics_every = 1500
    return config


def get_study() -> Study:
    return Study(
        variants=grid({"placement.preset": ("pre_ln_xavier", "post_ln", "deepnorm")}),
        baseline={"placement.preset": "pre_ln_xavier"},
        search=Search(lowest=2.0**-10, n=4),
        seeds=(1, 2, 3, 4, 5, 6, 7),  # the fewest that can show a difference in two comparisons
        smallest_difference=0.01,
    )
