"""Arranges examples in batches, as a pure function of (seed, step)."""
