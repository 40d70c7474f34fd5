"""Quickstart."""

from ml_collections import ConfigDict

from gpt2_jax import config as configs


def get_config() -> ConfigDict:
    config = configs.default()
    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 128
    config.data.seq_len = 128
    return config
