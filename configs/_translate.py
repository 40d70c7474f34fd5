from gpt2_jax import config as configs


def get_config():
    c = configs.default()
    c.task.name = "translate"
    c.model.architecture = {"translate": "encoder_decoder", "sft": "decoder"}.get("translate", "encoder")
    c.model.n_layer = 2
    c.model.n_head = 4
    c.model.n_embd = 64
    c.model.n_positions = 128
    c.data.tokenizer = {"mlm": "wordpiece:2000"}.get("translate", "bpe:2000")
    c.data.seq_len = 64
    c.train.batch_size = 16
    c.train.steps = 20
    c.train.eval_every = 20
    return c
