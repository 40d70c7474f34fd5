r"""Fine-tunes a decoder on prompts with completions, or on conversations.

    gpt2-jax train --config=sft --workdir=runs/chat --config.train.init_from=runs/gpt2 \
        --config.data.source=train.jsonl

Lines are {"prompt": ..., "completion": ...}, or {"messages": [{"role": ..., "content": ...}, ...]}
with a chat template. Only completions are predicted. Sizes, tokenizer and sequence length are those
of the run. Examples are packed into rows. Batch: 16 rows per step; 3 epochs, or fewer if the
validation loss has not fallen for three evaluations.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.task.name = "sft"

    config.optimizer.peak_lr = 1e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.final_lr_ratio = 0.0
    config.optimizer.weight_decay = 0.01

    config.train.init_from = "runs/gpt2"
    config.train.epochs = 3.0
    config.train.batch_size = 16
    config.train.eval_every = 50
    config.train.checkpoint_every = 50
    config.train.patience = 3
    return config
