from gpt2_jax import config as configs


def get_config():
    c = configs.default()
    c.task.name = "translate"
    c.model.architecture = "encoder_decoder"
    c.model.n_layer = 3
    c.model.n_head = 4
    c.model.n_embd = 128
    c.model.n_inner = 512
    c.model.n_positions = 64
    c.model.dropout = 0.15
    c.model.matmul_dtype = "auto"
    c.placement.preset = "pre_ln"
    c.placement.positions = "sinusoidal"
    c.data.tokenizer = "bpe:4000"
    c.data.seq_len = 64
    c.train.batch_size = 48
    c.train.steps = 4500
    c.train.eval_every = 750
    c.train.checkpoint_every = 750
    c.train.log_every = 50
    c.optimizer.peak_lr = 3e-3
    c.optimizer.b2 = 0.98
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_fraction = 0.08
    c.optimizer.final_lr_ratio = 0.0
    c.optimizer.weight_decay = 0.01
    c.optimizer.label_smoothing = 0.1
    return c
