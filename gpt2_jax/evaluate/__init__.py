"""What a trained model can be asked: texts, likelihoods, perplexity, the standard harness."""
