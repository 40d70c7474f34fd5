"""Scores of predictions: entities, classes, spans, translations and summaries.

Every function takes gold and predicted items, and returns `Scores`: values with bootstrap
intervals, tables, and a definition of each value. No module imports jax.
"""
