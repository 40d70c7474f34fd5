"""Prints every config field as a Markdown page."""

from gpt2_jax.config.docs import page

print(page(), end="")
