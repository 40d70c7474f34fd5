r"""Fine-tunes the weights of another run on another text, at a low learning rate.

    gpt2-jax train --config=finetune --workdir=runs/tuned \
        --config.train.init_from=runs/quickstart --config.data.source=path/to/text.txt

Model sizes, tokenizer and sequence length are those of the other run. Batch: 16 sequences per step;
500 steps, or fewer if the validation loss has not fallen for three evaluations.
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
