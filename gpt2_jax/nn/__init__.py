"""Layers. They know neither the config nor placements; every parameter names its role and axes."""
