"""Ablation studies: training variants against each other, and diagnosing models by depth."""
