"""Training: configuration, data stream, loop, checkpoints."""
