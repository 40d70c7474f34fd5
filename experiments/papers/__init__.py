"""Measures claims of papers on residual connections and norms, on small models."""
