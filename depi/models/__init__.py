"""Networks in plain PyTorch: `siglip` (vision), `gemma` (language, action expert), `pi0` and `pi05` (both together)."""
