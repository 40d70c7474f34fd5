"""What papers on residual connections and norms claim, measured here on small models."""
