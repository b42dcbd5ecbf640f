"""A run with all that a checkpoint is made of, and nothing to read: for tests of saving."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from small_pi0 import make_batch, make_small

from depi.policies import make_processors
from depi.training.config import EmaConfig, TrainConfig
from depi.training.ema import MovingAverage
from depi.training.optimizer import make_optimizer

REPORT: dict[str, Any] = {
    "num_episodes": 5,
    "num_frames": 500,
    "datasets": [
        {
            "repo_id": name,
            "revision": "a" * 40,
            "licence": licence,
            "episodes": 2,
            "frames": 200,
            "fps": 30,
            "recorded_fps": 30.0,
            "cameras": [],
            "camera_sizes": {},
            "convention": "degrees",
        }
        for name, licence in (
            ("alice/pick", "mit"),
            ("lab/collection:one", None),
            ("lab/collection:two", "cc-by-4.0"),
        )
    ],
    "decode_failures": {},
}


class SmallRun(SimpleNamespace):
    """What `Saver` reads of a `Run`."""

    def __init__(self, folder: Path, decay: float | None = None, export: bool = False, **flags: Any) -> None:
        torch.manual_seed(0)
        policy = make_small()
        policy.config.action_feature_names = [f"joint_{number}" for number in range(6)]
        values = {"mean": np.zeros(6, np.float32), "std": np.ones(6, np.float32)}
        stats = {"observation.state": values, "action": values}
        config = TrainConfig(policy=policy.config, ema=EmaConfig(decay, export), steps=1000, **flags)
        config.output_dir, config.job_name = folder, "small"
        optimizer = make_optimizer(policy)
        super().__init__(
            config=config,
            accelerator=Accelerator(cpu=True),
            dataset=SimpleNamespace(report=lambda: REPORT),
            policy=policy,
            processors=make_processors(policy.config, stats),
            optimizer=optimizer,
            scheduler=policy.config.get_scheduler_preset().build(optimizer, 1000),
            average=None if decay is None else MovingAverage(policy, decay),
            global_batch=4,
            step=0,
            report=REPORT,
        )

    def take_step(self, seed: int = 0) -> None:
        """Move every weight a little."""
        self.policy(make_batch(seed=seed))[0].backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
