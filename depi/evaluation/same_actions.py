"""Check whether two checkpoints give the same actions: `python -m depi.evaluation.same_actions A B`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lerobot.utils.constants import OBS_STATE

from depi.errors import UserError
from depi.policies import load_policy, load_processors, preprocess, resolve_checkpoint


def action_chunk(checkpoint: str | Path, seed: int = 0) -> torch.Tensor:
    """Return the chunk, float32 (1, chunk_size, action_dim), for one random observation of `seed`.

    All saved parts are used: tokenizer, normalisation, weights, denormalisation.
    """
    folder = resolve_checkpoint(checkpoint)
    policy = load_policy(folder, device="cpu").eval()
    before, after = load_processors(folder, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    assert config.robot_state_feature is not None
    batch = {
        key: torch.randint(0, 256, (1, *feature.shape), dtype=torch.uint8, generator=generator)
        for key, feature in config.image_features.items()
    }
    state = torch.randn(1, *config.robot_state_feature.shape, generator=generator)
    noise = torch.randn(1, config.chunk_size, config.max_action_dim, generator=generator)
    batch = preprocess({**batch, OBS_STATE: state, "task": ["pick up the cube"]}, before)
    with torch.inference_mode():
        return after(policy.predict_action_chunk(batch, noise=noise))


def main(args: Sequence[str]) -> int:
    """Print the largest difference in action units; exit 1 unless it is zero."""
    try:
        first, second = (action_chunk(checkpoint) for checkpoint in args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    difference = float((first - second).abs().max())
    print(f"largest difference over {first.numel()} action values: {difference:g}")
    return int(difference != 0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
