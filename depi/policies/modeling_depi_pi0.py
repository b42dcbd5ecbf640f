"""Where LeRobot's factory looks for the policy of a `DepiPi0Config`."""

from typing import Any

from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.pi0 import Pi0Policy


class DepiPi0Policy(Pi0Policy):
    """`Pi0Policy` as LeRobot makes it from scratch: the constructor draws the weights."""

    def __init__(self, config: DepiPi0Config, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.model.init_weights()
