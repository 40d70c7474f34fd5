"""What a trained model can be asked: so far, to go on with a text."""
