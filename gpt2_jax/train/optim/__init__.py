"""The optimizer, its schedule, and which parameters it trains."""
