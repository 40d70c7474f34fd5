"""Variants compared honestly: what a campaign's file is made of."""

from gpt2_jax.ablate.campaign.design import Campaign, crossed, grid, without, zipped
from gpt2_jax.ablate.campaign.search import Search

__all__ = ["Campaign", "Search", "crossed", "grid", "without", "zipped"]
