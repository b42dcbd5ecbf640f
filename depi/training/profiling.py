"""`--profile`: a trace of some steps, for Perfetto, and a summary of ten lines."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from depi.files import atomic_write, write_text
from depi.training.config import TrainConfig, steps_to_profile

logger = logging.getLogger(__name__)

# What a step consists of, in its order.
PHASES = ("data", "forward", "backward", "optimizer")
TOP_OPS = 4


class StepProfiler:
    """Profiles those steps of one process that the flags name; other steps and processes are not slowed down.

    While it profiles, the host waits for the device after each phase, so that its time is its own.

    Args:
        config: of the run; the profile goes to `profile/` in its folder.
        device: what is trained on.
        start_step: steps taken before this process began.
        wanted: whether this process is to be profiled at all.
    """

    def __init__(self, config: TrainConfig, device: torch.device, start_step: int, *, wanted: bool) -> None:
        assert config.output_dir is not None
        self.folder, self.device = config.output_dir / "profile", device
        self.steps = range(0)
        if wanted and config.profile:
            asked = steps_to_profile(config.profile, start_step)
            self.steps = range(max(asked[0], start_step + 1), min(asked[-1], config.steps) + 1)
            if not self.steps:
                logger.warning("--profile=%s: the run has no such step", config.profile)
        self.profiler: profile | None = None
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Profile the body, step `number` counted from 1, if that was asked for."""
        if number in self.steps and self.profiler is None:
            self._start(number)
        yield
        if self.profiler is not None and number == self.steps[-1]:
            self.finish(number)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the body to one of `PHASES`."""
        if self.profiler is None:
            yield
            return
        started = time.perf_counter()
        with record_function(name):
            yield
            self._wait()
        self.seconds[name] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _start(self, number: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._wait()
        self.profiler = profile(activities=activities)
        self.profiler.start()
        self.first, self.started = number, time.perf_counter()

    def finish(self, number: int) -> None:
        """End a profile after step `number`, and write it; does nothing where no profile was started."""
        if self.profiler is None:
            return
        self._wait()
        elapsed = time.perf_counter() - self.started
        self.profiler.stop()
        name = f"steps_{self.first}-{number}"
        trace = self.folder / f"{name}.json.gz"
        self.folder.mkdir(exist_ok=True)
        with atomic_write(trace) as temporary:
            _export(self.profiler, temporary)
        summary = self._summary(self.profiler, elapsed, number - self.first + 1, trace)
        write_text(self.folder / f"{name}.txt", summary + "\n")
        logger.info("%s", summary)
        self.profiler, self.steps = None, range(0)

    def _summary(self, profiler: profile, elapsed: float, steps: int, trace: Path) -> str:
        """Ten lines: the phases of a step and the operations that take most."""
        per_step = {name: seconds / steps for name, seconds in self.seconds.items()}
        per_step["other"] = elapsed / steps - sum(per_step.values())
        lines = [f"profile of {steps} steps, {elapsed / steps * 1e3:.1f} ms each; trace in {trace}"]
        for name, seconds in per_step.items():
            lines.append(f"  {name:<10} {seconds * 1e3:10.2f} ms {seconds * steps / elapsed:6.1%}")
        on_gpu = self.device.type == "cuda"
        attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        events = [event for event in profiler.key_averages() if not _is_range(event.key)]
        events.sort(key=lambda event: getattr(event, attribute), reverse=True)
        for event in events[:TOP_OPS]:
            seconds = getattr(event, attribute) / 1e6 / steps
            share = seconds * steps / elapsed
            lines.append(
                f"  {event.key[:60]}: {seconds * 1e3:.2f} ms {share:.1%}, {event.count // steps} calls"
            )
        return "\n".join(lines)


def _is_range(name: str) -> bool:
    """Whether an event is a part of the program, such as a phase, rather than an operation."""
    return name in PHASES or "#" in name or name.startswith("autograd::engine")


def _export(profiler: profile, path: Path) -> None:
    """Write the gzipped Chrome trace; PyTorch tells by the name that it is to be gzipped."""
    named = path.with_name(f"{path.name}.json.gz")
    try:
        profiler.export_chrome_trace(str(named))
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)
