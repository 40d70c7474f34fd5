"""Checkpoints in and out of the Hugging Face world."""
