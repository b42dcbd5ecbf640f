"""Where LeRobot's factory looks for the policy of a `DepiPi05Config`."""

from typing import Any

from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.pi05 import Pi05Policy


class DepiPi05Policy(Pi05Policy):
    """`Pi05Policy` as LeRobot makes it from scratch: the constructor draws the weights."""

    def __init__(self, config: DepiPi05Config, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.model.init_weights()
