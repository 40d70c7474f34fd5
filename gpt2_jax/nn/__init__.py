"""Layers, independent of config and placements; every parameter has a role and named axes."""
