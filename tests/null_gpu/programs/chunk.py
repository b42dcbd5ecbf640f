"""Chunks of the published size with three cameras, as a robot asks for them: graphs, launches, waits.

python chunk.py KIND ... takes `plain` chunks, the same `compiled`, those that follow the one before by
real-time chunking (`rtc`), and those of a policy that was trained to be given what is left of it (`given`).
"""

import gc
import sys
import time
from typing import Any

import torch
from device import counted_since, counts, report
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_pi0 import CAMERAS, SIZES, as_from_robot, make_batch, make_depi

from depi.policies.choices import set_choices

CHUNKS = 4
LEFT = ("given", "rtc")  # kinds that look at what is left
LEFT_OVER = {"inference_delay": 3, "execution_horizon": 10}
WORDS = 12


def measure(kind: str) -> list[dict[str, Any]]:
    """What each of four chunks took; the first ones capture, what the last does is what a robot sees."""
    policy = make_depi(SIZES["full"], "cuda", dtype="bfloat16")
    policy.config.compile_chunks = kind == "compiled"
    policy.for_inference()
    if kind == "given":
        set_choices(policy.config, {"rtc_training_max_delay": 5}, "chunk.py")
    if kind in LEFT:
        policy.config.rtc_config = RTCConfig()
        policy.init_rtc_processor()
    one = torch.tensor([len(CAMERAS)]), torch.tensor([WORDS])
    batch = as_from_robot(make_batch(SIZES["full"], *one, "cuda", torch.Generator().manual_seed(1)), WORDS)
    left_over = None
    chunks = []
    for _ in range(CHUNKS):
        before, started = counts(), time.process_time()
        rtc = {} if left_over is None else {"prev_chunk_left_over": left_over, **LEFT_OVER}
        actions = policy.predict_action_chunk(batch, **rtc)
        took = {"host_s": time.process_time() - started, "shape": tuple(actions.shape)}
        chunks.append({**counted_since(before), **took})
        left_over = actions[0, LEFT_OVER["inference_delay"] :] if kind in LEFT else None
    return chunks


if __name__ == "__main__":
    findings = {}
    for name in sys.argv[1:]:
        findings[name] = measure(name)
        gc.collect()
        torch.cuda.empty_cache()
    report(findings)
