r"""Goes on from another run's weights on another text, for a while and carefully.

    python train.py --config=configs/finetune.py --workdir=runs/tuned \
        --config.train.init_from=runs/quickstart --config.data.source=path/to/text.txt

The model's sizes, its tokenizer and its sequence length are those of the weights. Batch: 16
sequences; 500 updates, fewer if the validation loss has not fallen for three evaluations.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.optimizer.peak_lr = 3e-4
    config.optimizer.warmup_fraction = 0.1
    config.train.steps = 500
    config.train.batch_size = 16
    config.train.eval_every = 50
    config.train.checkpoint_every = 50
    config.train.patience = 3
    return config
