"""Running one function over many items."""

from depi.engine.pool import run

__all__ = ["run"]
