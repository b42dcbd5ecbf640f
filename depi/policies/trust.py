"""What a checkpoint may make LeRobot load: the gate before anything of a stranger's checkpoint is built.

LeRobot builds whatever policy type and processor steps a checkpoint names, and some of them load a repository
whose name stands in the checkpoint, and its code (`trust_remote_code=True` in gaussian_actor, pi0_fast,
groot, wall_x and the step action_tokenizer_processor of LeRobot 0.6.1). So types, steps and the repositories
that their fields may name are lists here, and everything else is refused by its name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from depi.errors import UserError, machine_error, one_line
from depi.files import read_json
from depi.policies.carried_tokenizer import CarriedTokenizerStep
from depi.policies.configuration import MOST_COUNTED
from depi.policies.families import TYPES, Allowed, family
from depi.policies.indicator import AdvantageTokenizerStep
from depi.policies.letterbox_step import LetterboxStep

CONFIG = "config.json"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"

TOKENIZER = "google/paligemma-3b-pt-224"
# The steps that LeRobot has not: it finds them by these names. Two may hold a tokenizer in place of a name.
CARRIED_STEP, ADVANTAGE_STEP, LETTERBOX_STEP = (
    f"{step.__module__}.{step.__name__}"
    for step in (CarriedTokenizerStep, AdvantageTokenizerStep, LetterboxStep)
)
_TOKENIZER_STEPS = (CARRIED_STEP, ADVANTAGE_STEP)
_OWN_STEPS = (*_TOKENIZER_STEPS, LETTERBOX_STEP)

_LONGEST_NAME = 256  # bytes; names of files are shorter
# As of --dataset.image_size.
_LARGEST_SIDE = 4096

_SMOLVLM = frozenset(
    f"HuggingFaceTB/SmolVLM2-{size}"
    for size in ("256M-Video-Instruct", "500M-Video-Instruct", "2.2B-Instruct")
)
_CLIP = frozenset({"openai/clip-vit-base-patch16"})
_PALIGEMMA = frozenset({TOKENIZER})

_STEPS = frozenset(
    {
        "rename_observations_processor",
        "to_batch_processor",
        "device_processor",
        "normalizer_processor",
        "unnormalizer_processor",
        "tokenizer_processor",
        "relative_actions_processor",
        "absolute_actions_processor",
    }
)


PI0_STEPS = Allowed(steps=frozenset({"pi0_new_line_processor"}), tokenizers=_PALIGEMMA)
PI05_STEPS = Allowed(steps=frozenset({"pi05_prepare_state_tokenizer_processor_step"}), tokenizers=_PALIGEMMA)
# LeRobot's other policies. Each was read in LeRobot 0.6.1: it loads no code, and no repository but by the
# fields named here.
LEROBOT_TYPES: Mapping[str, Allowed] = {
    "act": Allowed(),
    "diffusion": Allowed(),
    "vqbet": Allowed(),
    "tdmpc": Allowed(),
    "smolvla": Allowed(
        steps=frozenset({"smolvla_new_line_processor"}),
        repositories={"vlm_model_name": _SMOLVLM},
        tokenizers=_SMOLVLM,
    ),
    "multi_task_dit": Allowed(
        repositories={"vision_encoder_name": _CLIP, "text_encoder_name": _CLIP}, tokenizers=_CLIP
    ),
}


def allowed_of(kind: str) -> Allowed | None:
    """What a checkpoint of a policy type may name; None for a type that is not built for strangers."""
    allowed = family(kind).allowed if kind in TYPES else None
    return allowed or LEROBOT_TYPES.get(kind)


def check_checkpoint(folder: Path, kind: str) -> None:
    """Refuse a checkpoint that names a policy type, step or repository which is not on the lists.

    Args:
        folder: with config.json; processor files are checked where they are.
        kind: its policy type.

    Raises:
        UserError: it does, or one of the files is malformed.
    """
    allowed = allowed_of(kind)
    if allowed is None:
        raise UserError(
            f"{folder} is of policy type {one_line(repr(kind), 200)}; without code of strangers DePi builds "
            f"{', '.join(dict.fromkeys([*TYPES, *LEROBOT_TYPES]))}. If you trust its author: "
            "--trust_checkpoint=USER/NAME@COMMIT"
        )
    content = read_json(folder / CONFIG)
    for name, repositories in allowed.repositories.items():
        if isinstance(content, dict) and name in content:
            _check_repository(folder / CONFIG, name, content[name], repositories)
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if (folder / name).exists():
            check_steps(folder / name, kind)


def check_steps(path: Path, kind: str) -> None:
    """Refuse a pipeline file with a step, or a tokenizer, that does not belong to policies of type `kind`.

    Raises:
        UserError: it has one, or is malformed.
    """
    content = read_json(path)
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UserError(f"{path} is no LeRobot processor file: it has no list of steps")
    allowed = allowed_of(kind)
    assert allowed is not None
    for step in steps:
        _check_step(path, step, kind, allowed)


def _check_step(path: Path, step: Mapping[str, Any], kind: str, allowed: Allowed) -> None:
    name, imported = step.get("registry_name"), step.get("class")
    known = isinstance(name, str) and name in _STEPS | allowed.steps and imported is None
    if not known and (name is not None or imported not in _OWN_STEPS):
        raise UserError(f"{path} has a step that is not part of {kind}: {one_line(name or imported, 200)}")
    state = step.get("state_file")
    if state is not None and not _is_file_name(state):
        raise UserError(f"{path}: state file {one_line(repr(state), 200)} is not a plain file name")
    if state is not None and not (path.parent / state).is_file():
        raise UserError(f"{path} names {one_line(repr(state), 200)}, and there is no such file beside it")
    settings = step.get("config", {})
    if not isinstance(settings, dict):
        raise UserError(f"{path}: the settings of the step {name or imported} are no JSON object")
    if name == "tokenizer_processor" or imported in _TOKENIZER_STEPS:
        _check_tokenizer(path, settings, allowed, carried=imported in _TOKENIZER_STEPS and state is not None)
    if imported == LETTERBOX_STEP:
        _check_letterbox(path, settings)


def _is_file_name(value: Any) -> bool:
    plain = isinstance(value, str) and Path(value).name == value
    return plain and len(value.encode(errors="replace")) < _LONGEST_NAME


def _check_tokenizer(path: Path, settings: Mapping[str, Any], allowed: Allowed, *, carried: bool) -> None:
    # What is carried is data, checked as it is read; a policy type without a tokenizer has no use for one.
    if not (carried and allowed.tokenizers and settings.get("tokenizer_name") is None):
        _check_repository(path, "tokenizer_name", settings.get("tokenizer_name"), allowed.tokenizers)
    if settings.get("tokenizer") is not None:  # it would count in place of the name
        raise UserError(f"{path}: a tokenizer step names its tokenizer, and does not hold one")
    length = settings.get("max_length", 1)  # without it, the step has a default
    if type(length) is not int or not 1 <= length <= MOST_COUNTED:
        raise UserError(
            f"{path}: max_length of the tokenizer must be an integer of 1 to {MOST_COUNTED}, "
            f"not {one_line(repr(length), 40)}"
        )


def _check_letterbox(path: Path, settings: Mapping[str, Any]) -> None:
    side, cameras = settings.get("side"), settings.get("cameras")
    named = isinstance(cameras, list) and all(isinstance(camera, str) for camera in cameras)
    if type(side) is not int or not 1 <= side <= _LARGEST_SIDE or not named:
        raise UserError(f"{path}: images are letterboxed to 1 to {_LARGEST_SIDE} pixels, for cameras by name")


def _check_repository(path: Path, name: str, value: Any, expected: frozenset[str]) -> None:
    if not isinstance(value, str) or value not in expected:
        raise UserError(
            f"{path}: {name} is {one_line(repr(value), 200)}, and nothing is loaded from there; expected "
            + (" or ".join(sorted(expected)) or "no such step")
        )


@contextmanager
def refusing(what: object) -> Iterator[None]:
    """Turn whatever the body raises into a UserError: it builds or tries what a stranger has written.

    LeRobot, draccus, transformers and torch raise errors of every kind for values that they did not foresee.

    Args:
        what: the beginning of the sentence, such as "FOLDER cannot be loaded".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # LeRobot wraps what its steps raise; what they write are files of Hub repositories.
        if fault := machine_error(error) or machine_error(error.__cause__, constants.HF_HUB_CACHE):
            raise fault from None
        said = one_line(error)
        raise UserError(f"{what} ({type(error).__name__}{f': {said}' if said else ''})") from None


def never_ask_to_run_code() -> None:
    """Make transformers refuse a repository that brings code, where it would ask on standard input."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds that it waits for an answer
