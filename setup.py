"""Adds configs/ to the package, which pyproject.toml cannot express."""

from setuptools import find_packages, setup

CONFIGS = {"gpt2_jax.configs": "configs", "gpt2_jax.configs.ablations": "configs/ablations"}

setup(packages=[*find_packages(include=["gpt2_jax*"]), *CONFIGS], package_dir=CONFIGS)
