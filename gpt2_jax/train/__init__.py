"""The train step, optimizer and mesh, the training loop, checkpoints and run directories."""
