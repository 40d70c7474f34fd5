"""Ablation studies: what a study file imports."""

from gpt2_jax.ablation.study.design import Study, crossed, grid, without, zipped
from gpt2_jax.ablation.study.search import Search

__all__ = ["Search", "Study", "crossed", "grid", "without", "zipped"]
