"""What the rest of DePi needs to know of a family of policies: one record for each.

It is looked up by policy type, so nothing else asks of what class a configuration is. It is imported when it
is looked up, so the policies themselves can build on what does so.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from depi.errors import UserError, one_line

if TYPE_CHECKING:
    from depi.models.scene import SceneDimensions, SceneReader
    from depi.policies.convert import Layout

# Policy type -> the module that holds the record of its family, FAMILY.
TYPES = {
    "pi0": "depi.policies.family_pi0",
    "depi_pi0": "depi.policies.family_pi0",
    "pi05": "depi.policies.family_pi05",
    "depi_pi05": "depi.policies.family_pi05",
    "value": "depi.policies.family_value",
    # LeRobot's own classes:
    **dict.fromkeys(
        ("act", "diffusion", "vqbet", "smolvla", "multi_task_dit"), "depi.policies.family_lerobot"
    ),
}


@dataclass(frozen=True)
class Allowed:
    """What a checkpoint of one policy type may name.

    Attributes:
        steps: its processor steps beside those of every policy.
        repositories: fields of its config.json that LeRobot hands to a loader of repositories, and the
            repositories that they may name.
        tokenizers: the repositories that its tokenizer step may name.
    """

    steps: frozenset[str] = frozenset()
    repositories: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tokenizers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """A family of policies.

    Attributes:
        name: its tag on model cards.
        configs: policy type -> configuration class.
        policy: its policy class.
        network: the class of its network, made from dimensions. Stacks and layers (to compile, shard and
            recompute), and the parts that memory is estimated for, are the network's own.
        dimensions: configuration -> the network's sizes, by which operations are counted as well; raises a
            UserError for settings that would be ignored, a ValueError where sizes do not fit together.
        layout: sizes -> the names of weights in a file.
        processors: (configuration, statistics) -> LeRobot's pipelines before and after it.
        allowed: what a stranger's checkpoint may name; None: what `depi.policies.trust` says of its type.
        needs: what a training sample needs beside what was recorded: keys of `depi.training.data.NEEDS`.
        own: its network is one of `depi.models`: it can be compiled, recomputed, sharded and adapted, reads
            batches packed, gives a loss for each sample, and knows of absent cameras. If not, `policy` is
            `depi.policies.lerobot_policy.LeRobotPolicy`, and `network`, `dimensions` and `layout` refuse.
        acts: it gives actions. If not, samples hold one action that nobody looks at, and environments,
            advantages and LoRA are refused.
        stock: the policy types that LeRobot has too, whose checkpoints its commands run without a plugin.
        about: what it is, for a model card; `{type}` is the policy type.
        output: configuration -> the card's line about what comes out.
        usage: the commands of the card for a family that does not act.
    """

    name: str
    configs: Mapping[str, type]
    policy: Any
    network: Callable[[Any], "SceneReader"]
    dimensions: Callable[[Any], "SceneDimensions"]
    layout: Callable[[Any], "Layout"]
    processors: Callable[..., tuple[Any, Any]]
    allowed: Allowed | None
    needs: tuple[str, ...]
    about: str
    output: Callable[[Any], str]
    own: bool = True
    acts: bool = True
    stock: tuple[str, ...] = ()
    usage: tuple[str, ...] = ()


def own_types() -> str:
    """The policy types whose networks are DePi's, for a sentence."""
    return ", ".join(kind for kind in TYPES if family(kind).own)


def family(kind: str) -> Family:
    """The family of a policy type, such as `pi0`.

    Raises:
        UserError: there is none.
    """
    if not isinstance(kind, str) or kind not in TYPES:
        shown = one_line(repr(kind), 200)
        raise UserError(f"policy type {shown} is none that DePi trains: it knows {', '.join(TYPES)}")
    return importlib.import_module(TYPES[kind]).FAMILY


def family_of(config: Any) -> Family:
    """The family that a policy configuration belongs to; see `family`."""
    return family(config.type)
