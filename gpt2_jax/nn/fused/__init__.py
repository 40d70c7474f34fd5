"""GPU kernels in Pallas (Triton) for what XLA does in several passes over memory."""
