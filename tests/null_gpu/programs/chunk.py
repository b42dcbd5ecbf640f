"""Chunks of the published size with three cameras, as a robot asks for them: graphs, launches, waits.

python chunk.py KIND ... takes `plain` chunks, those that follow the one before by real-time chunking (`rtc`),
and the same of a policy that was trained to be given what is left of it (`given`).
"""

import gc
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from device import counted_since, counts, report
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_pi0 import CAMERAS, SIZES, make_batch, make_depi

from depi.policies.choices import set_choices

CHUNKS = 4
LEFT_OVER = {"inference_delay": 3, "execution_horizon": 10}
WORDS = 12


def read_from_device(tensor: torch.Tensor, read: Callable = torch.Tensor.tolist) -> list:
    """What `trim` reads back: the longest prompt, and which cameras are there; no kernel has computed it."""
    values = read(tensor)
    return [WORDS, *[1] * len(CAMERAS)] if tensor.is_cuda else values


def measure(kind: str) -> list[dict[str, Any]]:
    """What each of four chunks took; the first ones capture, what the last does is what a robot sees."""
    policy = make_depi(SIZES["full"], "cuda", dtype="bfloat16").for_inference()
    if kind == "given":
        set_choices(policy.config, {"rtc_training_max_delay": 5}, "chunk.py")
    if kind != "plain":
        policy.config.rtc_config = RTCConfig()
        policy.init_rtc_processor()
    one = torch.tensor([len(CAMERAS)]), torch.tensor([WORDS])
    batch = make_batch(SIZES["full"], *one, "cuda", torch.Generator().manual_seed(1))
    left_over = None
    chunks = []
    for _ in range(CHUNKS):
        before, started = counts(), time.process_time()
        rtc = {} if left_over is None else {"prev_chunk_left_over": left_over, **LEFT_OVER}
        with patch.object(torch.Tensor, "tolist", read_from_device):
            actions = policy.predict_action_chunk(batch, **rtc)
        took = {"host_s": time.process_time() - started, "shape": tuple(actions.shape)}
        chunks.append({**counted_since(before), **took})
        left_over = None if kind == "plain" else actions[0, LEFT_OVER["inference_delay"] :]
    return chunks


if __name__ == "__main__":
    findings = {}
    for name in sys.argv[1:]:
        findings[name] = measure(name)
        gc.collect()
        torch.cuda.empty_cache()
    report(findings)
