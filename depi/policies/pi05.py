"""pi0.5 as a LeRobot policy.

What `Pi0Policy` does around its network is the same here: the state, which pi0.5 reads in its prompt, is put
there by LeRobot's processor step.
"""

from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.pi0 import Pi0Policy


class Pi05Policy(Pi0Policy):
    """pi0.5 behind LeRobot's policy interface, for `pi05` and `depi_pi05` configurations.

    Files on disk have LeRobot's names, whatever the size.
    """

    config_class = DepiPi05Config
    name = "depi_pi05"
