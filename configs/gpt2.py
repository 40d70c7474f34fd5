r"""GPT-2 in its four sizes: `--config=gpt2:124m` (or 350m, 774m, 1558m), for GPUs and TPUs.

    gpt2-jax train --config=gpt2:124m --workdir=runs/gpt2_124m \
        --config.data.source='data/fineweb10B/fineweb_train_*.bin' \
        --config.data.val_source='data/fineweb10B/fineweb_val_*.bin'

Batch: 512 sequences x 1,024 = 524,288 tokens per step; 19,073 steps = 10.0B tokens. The number of
micro-batches is chosen for one 80 GB GPU; eight GPUs need fewer. Learning rates, schedule and decay
follow GPT-3 (Brown et al. 2020, table 2.1) and llm.c's 124M run, which reaches 3.28 to 3.29 on
FineWeb's validation shard. Result: not trained to the end yet. On one H100, the four sizes train at
532,000, 197,000, 89,500 and 48,400 tokens per second with peaks of 38, 38, 40 and 68 GiB.
"""

from ml_collections import ConfigDict

from gpt2_jax import config as configs
from gpt2_jax.errors import UserError, suggestion

#        layers heads width peak_lr accumulation
SIZES = {
    "124m": (12, 12, 768, 6e-4, 8),
    "350m": (24, 16, 1024, 3e-4, 16),
    "774m": (36, 20, 1280, 2.5e-4, 32),
    "1558m": (48, 25, 1600, 2e-4, 32),
}


def get_config(size: str = "124m") -> ConfigDict:
    if size not in SIZES:
        raise UserError(f"configs/gpt2.py: {size!r} is not a size{suggestion(size, SIZES)}")
    config = configs.default()
    n_layer, n_head, n_embd, peak_lr, accumulation = SIZES[size]
    config.model.n_layer = n_layer
    config.model.n_head = n_head
    config.model.n_embd = n_embd
    config.model.dtype = "bfloat16"

    config.data.tokenizer = "gpt2"
    config.data.val_fraction = 0.001

    config.optimizer.peak_lr = peak_lr
    config.optimizer.warmup_fraction = 700 / 19_073  # 367M tokens, as in llm.c
    config.optimizer.final_lr_ratio = 0.0

    config.train.steps = 19_073
    config.train.batch_size = 512
    config.train.accumulation = accumulation
    config.train.eval_tokens = 10_485_760
    config.train.checkpoint_every = 1000
    config.train.eval_every = 250
    config.train.sample_tokens = 256
    return config
