"""Evaluation of trained models: text generation, likelihoods, perplexity, lm-evaluation-harness."""
