"""Parameter-efficient tuning: what is added to a trained model, and which of it is trained."""
