"""Makes DePi's policy types known to LeRobot, whose commands import this package."""

from depi.policies.configuration_depi_pi0 import DepiPi0Config

__all__ = ["DepiPi0Config"]
