"""Text to tokens, tokens to shards, shards to batches; does not import jax."""
