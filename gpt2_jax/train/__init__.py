"""The train step, its optimizer and mesh, the loop that feeds it, and the checkpoints it leaves."""
