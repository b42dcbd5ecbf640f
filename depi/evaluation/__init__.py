"""Closed-loop rollouts of checkpoints."""
