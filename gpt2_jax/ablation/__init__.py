"""Ablation studies: training and comparing variants, and diagnosing models block by block."""
