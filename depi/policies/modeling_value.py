"""Where LeRobot's factory looks for the policy of a `ValueConfig`."""

from depi.policies.value import ValuePolicy

__all__ = ["ValuePolicy"]
