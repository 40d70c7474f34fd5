"""Tasks: what a model predicts, on which examples, with which loss and scores."""
