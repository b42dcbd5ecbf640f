"""Makes DePi's policy types known to LeRobot, whose commands import this package."""

import depi.hub.client.api  # noqa: F401  its session: `push_to_hub` stays with the Hub of HF_ENDPOINT
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.configuration_value import ValueConfig
from lerobot_policy_depi.acting import mark_policies_that_only_act
from lerobot_policy_depi.rate import follow_the_training
from lerobot_policy_depi.slots import fill_rename_maps

fill_rename_maps()
follow_the_training()
mark_policies_that_only_act()

__all__ = ["DepiPi0Config", "DepiPi05Config", "ValueConfig"]
