"""Makes DePi's policy types known to LeRobot, whose commands import this package."""

from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.configuration_value import ValueConfig

__all__ = ["DepiPi0Config", "DepiPi05Config", "ValueConfig"]
