"""Variants compared honestly: what a campaign's file is made of."""

from gpt2_jax.ablate.campaign.design import Campaign, Search, crossed, grid, without, zipped

__all__ = ["Campaign", "Search", "crossed", "grid", "without", "zipped"]
