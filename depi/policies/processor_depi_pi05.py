"""Where LeRobot's factory looks for the pipelines of a `DepiPi05Config`."""

from collections.abc import Mapping
from typing import Any

from depi.policies.configuration_depi_pi05 import DepiPi05Config
from depi.policies.processors import Pipeline, make_processors


def make_depi_pi05_pre_post_processors(
    config: DepiPi05Config, dataset_stats: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Pipeline, Pipeline]:
    """`make_processors` under the name that LeRobot calls; without statistics nothing is normalised."""
    return make_processors(config, dataset_stats or {})
