"""Asking a Hub: listing, reading and publishing through huggingface_hub, with retries and bounds."""
