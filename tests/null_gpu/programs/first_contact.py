"""The first training on a kind of GPU, which has a fault, and the next one.

python first_contact.py FAULT ...
"""

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate import Accelerator
from device import report
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi.policies import gpus
from depi.policies.choices import choices_of
from depi.policies.gpus import saved_verdict
from depi.training.config import TrainConfig
from depi.training.gpu import examination

FAULTY = str(Path(__file__).with_name("faulty_checks.py"))


class Heard(logging.Handler):
    """Collects messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def contact(fault: str) -> dict[str, Any]:
    """What a run with such a GPU does, and says, and what the next one does."""
    os.environ["DEPI_CACHE"] = tempfile.mkdtemp()
    accelerator = Accelerator()
    loggers = [logging.getLogger(module.__name__) for module in (examination, gpus)]
    found = {}
    # The second one has no checks to make: none would succeed.
    for name, command in (("first", (sys.executable, FAULTY, fault)), ("second", ("/bin/false",))):
        heard = Heard()
        for logger in loggers:
            logger.setLevel(logging.INFO)
            logger.addHandler(heard)
        policy = PI0Config(device="cpu", dtype="bfloat16")
        policy.float8 = fault == "float8"
        config = TrainConfig(policy=policy, compile=fault in ("none", "nothing", "compile"))
        with patch.object(examination, "CHILD", command):
            examination.first_contact(config, accelerator)
        for logger in loggers:
            logger.removeHandler(heard)
        found[name] = {
            "attention_backends": choices_of(policy).attention_backends,
            "compile": config.compile,
            "float8": policy.float8,
            "messages": heard.messages,
        }
    checks = {check.name: vars(check) for check in saved_verdict(accelerator.device).checks}
    return {**found, "checks": checks}


if __name__ == "__main__":
    report({name: contact(name) for name in sys.argv[1:]})
