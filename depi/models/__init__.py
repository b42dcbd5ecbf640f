"""Networks in plain PyTorch: `siglip` (vision), `gemma` (language, action expert), `pi0`, `pi05` (both)."""
