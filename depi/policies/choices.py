"""What DePi's policies can be told for which LeRobot's configuration of the same type has no field.

The policy types of DePi's own have these fields. LeRobot refuses a config.json with a field that it does not
know: a configuration of LeRobot's type carries them as attributes, its config.json stays LeRobot's, and what
is not the default is saved beside it in `depi.json`, which LeRobot ignores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import draccus
import yaml

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.flag_sources import FLAGS_BESIDE
from depi.models.attention import Backends, read_backends

CHOICES_FILE = "depi.json"
# Memory grows with it: keys and values of the prefix are held for each.
MOST_SAMPLES = 256
# Fields of a configuration that go by the machine, and change results by rounding alone.
OF_THE_MACHINE = ("attention_backends", "cuda_graphs", "compile_chunks", "compile_model")


@dataclass
class OwnChoices:
    """The fields, and their defaults: a policy as LeRobot trains and runs it."""

    # Strength beta of the advantage indicator when the policy runs; 1: as it was trained. More than 1 goes
    # further, at up to twice the time. Only for policies that were trained with an indicator.
    guidance: float = 1.0
    # Train for real-time chunking with inference delays of 0 to so many steps: the first actions of a chunk
    # are given, the others learned. Below chunk_size; 0: not.
    rtc_training_max_delay: int = 0
    # Leave the action steps past an episode's end, where the last action repeats, out of the loss. LeRobot
    # and openpi count them: the policy learns to hold still there.
    do_mask_loss_for_padding: bool = False
    # Scale images down with antialiasing, as openpi did for the weights that it published. LeRobot does not:
    # its own pi0 then sees other images than in training, see docs/training.md.
    image_antialias: bool = False
    # Sample so many chunks when the policy runs, and act on the one that is nearest to their mean.
    num_samples: int = 1
    # The attention kernels that may be used on a CUDA device: each call takes the first one that fits, and
    # math where none does. `depi doctor --gpu` says which are wrong on a GPU.
    attention_backends: str = "varlen,flash,efficient,math"
    # Replay chunks as one CUDA graph when the policy runs on such a device.
    cuda_graphs: bool = True
    # Compile chunks on such a device; the first takes a minute or two.
    compile_chunks: bool = True
    # Multiply in float8 in the language model's layers while training, with dtype=bfloat16: for NVIDIA GPUs
    # from compute capability 8.9 on. Evaluations and robots compute as without.
    float8: bool = False


NAMES = tuple(field.name for field in fields(OwnChoices))


def are_beside(kind: str) -> bool:
    """Whether these are no fields of the configuration of a policy type."""
    return kind in FLAGS_BESIDE


def choices_of(config: Any) -> OwnChoices:
    """What a configuration of any type says."""
    default = OwnChoices()
    return OwnChoices(**{name: getattr(config, name, getattr(default, name)) for name in NAMES})


def check_choices(config: Any) -> None:
    """Raise a UserError for values that no policy can follow."""
    choices, steps = choices_of(config), config.chunk_size
    delay, samples = choices.rtc_training_max_delay, choices.num_samples
    if not 0 <= delay < steps:
        raise UserError(f"rtc_training_max_delay must be 0 to {steps - 1}, below chunk_size, not {delay}")
    if not 1 <= samples <= MOST_SAMPLES:
        raise UserError(f"num_samples must be 1 to {MOST_SAMPLES}, not {samples}")
    attention_backends(config)


def attention_backends(config: Any) -> Backends:
    """The attention kernels that a configuration of any of DePi's types allows.

    Raises:
        UserError: there is no such kernel.
    """
    try:
        return read_backends(choices_of(config).attention_backends)
    except ValueError as error:
        raise UserError(f"attention_backends: {error}") from None


def split_flags(flags: Sequence[str], prefix: str = "--") -> tuple[dict[str, Any], list[str]]:
    """Flags such as `--rtc_training_max_delay=5` of these fields, as values by name; and the other flags."""
    own: dict[str, Any] = {}
    others = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        if equals and name.startswith(prefix) and name.removeprefix(prefix) in NAMES:
            own[name.removeprefix(prefix)] = yaml.safe_load(value)
        else:
            others.append(flag)
    return own, others


def set_choices(config: Any, values: Mapping[str, Any], what: object) -> None:
    """Give a configuration these choices, and the default of the others.

    Args:
        config: of LeRobot's type.
        values: by name, as JSON and YAML have them.
        what: where they come from, for the message.

    Raises:
        UserError: a value is of another type, or there is no such choice.
    """
    try:
        choices = draccus.decode(OwnChoices, dict(values))
    except draccus.utils.DecodingError as error:
        raise UserError(f"{what}: {'.'.join(error.key_path)}: {error.message}") from None
    for name in NAMES:
        setattr(config, name, getattr(choices, name))


def read_choices(folder: Path) -> dict[str, Any]:
    """What `depi.json` of a checkpoint says, by name; nothing without one.

    Raises:
        UserError: it is no JSON object.
    """
    path = folder / CHOICES_FILE
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def choices_beside(config: Any) -> dict[str, Any]:
    """Of a configuration of LeRobot's type the choices that are not the default; nothing of DePi's types."""
    if not are_beside(config.type):
        return {}
    default = OwnChoices()
    return {
        name: value for name, value in vars(choices_of(config)).items() if value != getattr(default, name)
    }


def save_config(config: Any, folder: Path) -> None:
    """Write config.json, and `depi.json` where it is needed."""
    config._save_pretrained(folder)
    path, beside = folder / CHOICES_FILE, choices_beside(config)
    if beside:
        write_json(path, beside)
    else:
        path.unlink(missing_ok=True)
