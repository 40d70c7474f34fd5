"""Tracking a run: metrics.jsonl, wandb, the progress bar, the loss curve, throughput."""
