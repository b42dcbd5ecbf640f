"""DePi: pi0 trained on the SO-100 and SO-101 datasets that the community publishes."""

__version__ = "0.1.0"
