"""What a run says of itself: metrics.jsonl, wandb, the bar, the plot, throughput."""
