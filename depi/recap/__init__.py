"""RECAP: reinforcement learning from the successes and failures that were recorded."""
