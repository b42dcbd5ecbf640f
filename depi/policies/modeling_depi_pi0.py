"""Where LeRobot's factory looks for the policy of a `DepiPi0Config`."""

from depi.policies.pi0 import Pi0Policy as DepiPi0Policy

__all__ = ["DepiPi0Policy"]
