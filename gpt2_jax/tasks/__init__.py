"""What a model predicts, on which examples, and how that is scored: one module per concern."""
