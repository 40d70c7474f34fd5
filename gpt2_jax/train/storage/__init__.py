"""Run directories and their checkpoints: writing, checking, reading."""
