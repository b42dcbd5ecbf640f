"""Before and after the policy: LeRobot's own pipelines, made, loaded and called."""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from huggingface_hub import constants
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import ACTION

from depi.errors import UserError, first_line, machine_error, one_line
from depi.files import read_json
from depi.models.scene import SO400M
from depi.policies.carried_tokenizer import carried_by, carrying, largest_token, small_tokenizer
from depi.policies.checkpoint import load_config, resolve_checkpoint
from depi.policies.configuration import dimensions_of
from depi.policies.families import family_of
from depi.policies.foreign import stored_stats
from depi.policies.indicator import conditioned, plain_prompt
from depi.policies.measured_tokenizer import measured, standing_in
from depi.policies.trust import (
    ADVANTAGE_STEP,
    POSTPROCESSOR,
    PREPROCESSOR,
    TOKENIZER,
    check_steps,
    never_ask_to_run_code,
    refusing,
)

type Pipeline = PolicyProcessorPipeline[Any, Any]

logger = logging.getLogger(__name__)

# Quantiles of a joint are at least this share of the widest joint's apart, as standard deviations are.
QUANTILE_FLOOR = 1e-3


def make_processors(
    config: Any,
    stats: Mapping[str, Mapping[str, Any]],
    *,
    indicator: bool = False,
    base: Path | None = None,
) -> tuple[Pipeline, Pipeline]:
    """Fresh pipelines: (batch -> batch for the policy, normalised actions -> actions).

    Those of DePi's own policy types save their tokenizer with them; LeRobot's types go by its name. It is
    PaliGemma's, from the Hub, or where the network has fewer words than that, DePi's own small one.

    Args:
        config: with features set; see `set_features`.
        stats: `{"observation.state": {"mean": ..., "std": ...}, "action": ...}`, arrays or tensors; those of
            relative actions where the policy's are, see `relative_joints`. What the configuration normalises
            by has to be there; see `widened` for quantiles.
        indicator: prompts say that the advantage is positive, where they do not say what it is.
        base: the checkpoint that is fine-tuned, whose tokenizer is taken where it carries one.

    Raises:
        UserError: the tokenizer cannot be had, or knows more tokens than the policy.
    """
    tensors = {
        key: widened({name: torch.as_tensor(np.asarray(value)) for name, value in values.items()})
        for key, values in stats.items()
    }
    _need_statistics(config, tensors)

    own = config.type not in family_of(config).stock
    tokenizer = carried_by(load_processors(base)[0]) if own and base is not None else None
    if tokenizer is None and own and _has_few_words(config):
        tokenizer = small_tokenizer()

    def make() -> tuple[Pipeline, Pipeline]:
        with standing_in(tokenizer):
            pre, post = family_of(config).processors(config, tensors)
        pre = carrying(pre) if own else measured(pre)
        return conditioned(pre) if indicator else pre, post

    pre, post = _with_tokenizer(make)
    _fit_tokenizer(pre, config)
    return pre, post


def _has_few_words(config: Any) -> bool:
    return family_of(config).own and dimensions_of(config).vocab_size < SO400M["vocab_size"]


def widened(stats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Statistics whose quantiles are safe to divide by: a joint that rests in 98% of the frames has none.

    The upper quantile is moved up until they are at least QUANTILE_FLOOR of the widest joint's apart, or 1 if
    no joint moves at all: where the joint rests, the result is -1, as LeRobot and openpi have it.
    """
    stats = dict(stats)
    for low, high in (("q01", "q99"), ("q10", "q90")):
        if low in stats and high in stats:
            spread = stats[high] - stats[low]
            least = QUANTILE_FLOOR * spread.amax() if spread.amax() > 1e-8 else torch.ones_like(spread)
            stats[high] = torch.where(spread < least, stats[low] + least, stats[high])
    return stats


def _need_statistics(config: Any, stats: Mapping[str, Mapping[str, Any]]) -> None:
    for key, feature in {**config.input_features, **config.output_features}.items():
        mode = NormalizationMode(config.normalization_mapping.get(feature.type.value, "IDENTITY"))
        missing = set(_PAIRS.get(mode, ())) - stats.get(key, {}).keys()
        if key in stats and missing:
            raise UserError(
                f"{key} is normalised by {mode.value}, and its statistics lack {', '.join(sorted(missing))}"
            )


def relative_joints(config: Any) -> list[bool] | None:
    """For each number of the policy's actions, whether it is relative to the state; None where none is.

    Those whose name contains one of `relative_exclude_joints` stay absolute, by LeRobot's own rule.
    """
    if not getattr(config, "use_relative_actions", False):
        return None
    step = RelativeActionsProcessorStep(
        exclude_joints=config.relative_exclude_joints, action_names=config.action_feature_names
    )
    return step._build_mask(config.output_features[ACTION].shape[0])


def load_processors(
    path_or_repo_id: str | Path, *, revision: str | None = None, device: str | None = None
) -> tuple[Pipeline, Pipeline]:
    """Pipelines of a checkpoint; see `load_policy` for the arguments.

    A checkpoint of openpi or of LeRobot before 0.4 has none: they are made from its statistics.

    Raises:
        UserError: files are missing or contain steps that pi0 has not, or the tokenizer does not fit.
    """
    folder = resolve_checkpoint(path_or_repo_id, revision)
    config = load_config(folder)
    if not (folder / PREPROCESSOR).exists() and not (folder / POSTPROCESSOR).exists():
        config.device = device or config.device
        made = make_processors(config, stored_stats(folder))
        check_processors(folder, made, config)
        return made
    for name in (PREPROCESSOR, POSTPROCESSOR):
        check_steps(folder / name, config.type)
    to_device = {"device_processor": {"device": device or config.device}}

    def load() -> tuple[Pipeline, Pipeline]:
        return (
            measured(PolicyProcessorPipeline.from_pretrained(folder, PREPROCESSOR, overrides=to_device)),
            PolicyProcessorPipeline.from_pretrained(
                folder,
                POSTPROCESSOR,
                to_transition=policy_action_to_transition,
                to_output=transition_to_policy_action,
            ),
        )

    pre, post = _with_tokenizer(load)
    with refusing(f"{folder}: processors cannot be used"):
        _connect_steps(pre, post)
        _fit_tokenizer(pre, config)
        check_processors(folder, (pre, post), config)
    return pre, post


def _connect_steps(pre: Pipeline, post: Pipeline) -> None:
    """Let actions be made absolute by the state that they were made relative to."""
    for relative in (step for step in pre.steps if isinstance(step, RelativeActionsProcessorStep)):
        for absolute in (step for step in post.steps if isinstance(step, AbsoluteActionsProcessorStep)):
            absolute.relative_step = relative


def check_processors(folder: Path, pipelines: tuple[Pipeline, Pipeline], config: Any) -> None:
    """Check the statistics of a checkpoint's pipelines, and that they take what the policy is given.

    Args:
        folder: the checkpoint, for messages.
        pipelines: the pre- and the postprocessor.
        config: says what the policy sees and gives.

    Raises:
        UserError: statistics are impossible (see `check_statistics`), or a made-up sample does not pass.
    """
    check_statistics(folder, pipelines, config)
    pre, post = pipelines
    with refusing(f"{folder}: processors do not work"):
        sample = {key: torch.zeros(1, *feature.shape) for key, feature in config.input_features.items()}
        prepared = pre({**sample, "task": [""]})
        lost = [key for key, value in sample.items() if value.shape != prepared[key].shape]
        if lost:
            raise UserError(f"{folder / PREPROCESSOR} changes the shape of {one_line(lost[0], 80)}")
        if config.action_feature is not None:
            actions = torch.zeros(1, *config.action_feature.shape)
            if (shape := post(actions).shape) != actions.shape:
                raise UserError(f"{folder / POSTPROCESSOR} makes actions of shape {list(shape)}")


def check_statistics(folder: Path, pipelines: tuple[Pipeline, Pipeline], config: Any) -> None:
    """Check the statistics by which a checkpoint's pipelines normalise; a spread of zero is a warning.

    Args:
        folder: the checkpoint, for messages.
        pipelines: the pre- and the postprocessor.
        config: says how many numbers state and action have.

    Raises:
        UserError: a number is NaN or infinite, a spread negative, or there are too few or too many numbers.
    """
    features = {**config.input_features, **config.output_features}
    for name, pipeline in zip((PREPROCESSOR, POSTPROCESSOR), pipelines, strict=True):
        for step in pipeline.steps:
            if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
                found = step.state_dict()
                for key, feature in features.items():
                    pair = _PAIRS.get(step.norm_map.get(feature.type, NormalizationMode.IDENTITY), ())
                    values = {each: found[f"{key}.{each}"] for each in pair if f"{key}.{each}" in found}
                    _check_pair(f"{folder / name}: ", key, feature, values)


# What each way of normalising uses.
_PAIRS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def _check_pair(where: str, key: str, feature: PolicyFeature, values: Mapping[str, torch.Tensor]) -> None:
    """Check the statistics of one feature: its mean and std, or its least and largest."""
    sizes = feature.shape[:1] if feature.type is FeatureType.VISUAL else feature.shape
    for name, value in values.items():
        if value.numel() != math.prod(sizes):
            raise UserError(
                f"{where}{name} of {key} has {value.numel()} numbers, and config.json says {math.prod(sizes)}"
            )
        if not value.isfinite().all():
            raise UserError(f"{where}{name} of {key} is NaN or infinite: choose another checkpoint")
    if len(values) < 2:
        return
    low, high = (value.flatten() for value in values.values())
    spread = high if "std" in values else high - low
    if (spread < 0).any():
        raise UserError(f"{where}{' and '.join(values)} of {key} give a negative spread")
    if (spread == 0).any():
        logger.warning(
            "%s%s of %s give no spread in numbers %s: if they vary after all, the policy sees huge ones",
            where,
            " and ".join(values),
            key,
            spread.eq(0).nonzero().flatten().tolist(),
        )


def save_processors(folder: Path, pre: Pipeline, post: Pipeline) -> None:
    """Write both pipelines in LeRobot's files."""
    pre.save_pretrained(folder)
    post.save_pretrained(folder)


def on_cpu(pre: Pipeline) -> Pipeline:
    """The same preprocessing, which leaves batches on the CPU: for the workers of a DataLoader."""
    steps = []
    for step in pre.steps:
        if isinstance(step, DeviceProcessorStep):
            step = DeviceProcessorStep(device="cpu")
        elif isinstance(step, NormalizerProcessorStep):
            step = copy.copy(step)
            step.to(device="cpu")  # its statistics; a worker may not touch those on a GPU
        steps.append(step)
    return dataclasses.replace(pre, steps=steps)


def preprocess(batch: Mapping[str, Any], pre: Pipeline) -> dict[str, Any]:
    """Run the pipeline, and carry along what it does not know.

    LeRobot's pipelines drop keys outside their vocabulary (`noise`, `time`, `dataset_index`, ...); here those
    are moved to the same device and kept. Prompts for pi0 are written as those of its training were, see
    `plain_prompt`: LeRobot's step only ends them with a line break.
    """
    given = dict(batch)
    if "task" in given and any(isinstance(step, Pi0NewLineProcessor) for step in pre.steps):
        task = given["task"]
        given["task"] = plain_prompt(task) if isinstance(task, str) else [plain_prompt(each) for each in task]
    processed = pre(given)
    device = next(value.device for value in processed.values() if isinstance(value, torch.Tensor))
    for key in batch.keys() - processed.keys():
        value = batch[key]
        processed[key] = value.to(device) if isinstance(value, torch.Tensor) else value
    return processed


def is_told_advantages(folder: Path) -> bool:
    """Whether the policy in a checkpoint folder was trained with an advantage indicator in its prompts."""
    path = folder / PREPROCESSOR
    content = read_json(path) if path.exists() else None
    steps = content.get("steps") if isinstance(content, dict) else None
    return any(isinstance(step, dict) and step.get("class") == ADVANTAGE_STEP for step in steps or ())


def _with_tokenizer(build: Callable[[], tuple[Pipeline, Pipeline]]) -> tuple[Pipeline, Pipeline]:
    """Call `build`, which fetches the tokenizer, and say what to do when that fails."""
    never_ask_to_run_code()
    with refusing("the policy's processors cannot be built"):
        try:
            return build()
        # transformers asks the Hub about a large vocabulary even if it is cached, and httpx's error passes.
        except (OSError, httpx.TransportError) as error:
            if fault := machine_error(error, constants.HF_HUB_CACHE):
                raise fault from None
            gated = any(word in str(error).lower() for word in ("gated", "401", "403", "restricted"))
            login = "then run `hf auth login` or set HF_TOKEN"
            remedy = (
                f"ask for access at https://huggingface.co/{TOKENIZER}, {login}"
                if gated
                else "check the network, HF_ENDPOINT and HF_TOKEN; HF_HUB_OFFLINE=1 takes what is cached"
            )
            raise UserError(
                f"the tokenizer {TOKENIZER} cannot be loaded; {remedy} ({first_line(error)})"
            ) from None


def _fit_tokenizer(pre: Pipeline, config: Any) -> None:
    if not family_of(config).own:
        return
    room = dimensions_of(config).vocab_size
    for step in pre.steps:
        if isinstance(step, TokenizerProcessorStep):
            # A task that says "<image>" or "<eos>" means these letters. PaliGemma's `<image>` stands behind
            # its vocabulary, and the policy has no embedding for it.
            step.input_tokenizer.split_special_tokens = True
            carried = carried_by(pre)
            size = step.input_tokenizer.vocab_size if carried is None else largest_token(carried) + 1
            if size > room:
                name = step.tokenizer_name or "of the policy"
                raise UserError(
                    f"the tokenizer {name} has {size} tokens, the policy has room for {room}; "
                    f"use a policy whose vocab_size is at least {size}"
                )
