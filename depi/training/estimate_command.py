"""`depi estimate`: what memory a training needs, and which flags make it fit which GPU."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from depi.errors import UserError
from depi.flags import check_ranges, parse_flags, take_flags
from depi.training.lerobot_flags import check_train_flags

if TYPE_CHECKING:
    from depi.training.estimate import Estimate
    from depi.training.fitting import Plan

CARDS_GB = (8, 24, 48, 80, 141)


@dataclass
class EstimateConfig:
    """Say what memory a training needs, and with which flags it fits which GPU; nothing is allocated.

    depi estimate --policy.type=pi0 --batch_size=32
    depi estimate --config_path=configs/train/pi0_pusht.yaml --gpu_memory=32
    depi train ... $(depi estimate ... --fit)

    Every flag of depi/train.py is taken as well; of --policy.path only the configuration is fetched. Samples
    of a step and what is trained stay the same as long as possible.
    """

    # Real images per sample, on average.
    images: float = 3.0
    # GPUs, all in one machine.
    num_processes: int = 1
    # GB of a GPU: one more row beside the usual ones; that of this machine's GPU is there by itself.
    gpu_memory: float | None = None
    # Print nothing but the flags to add for this machine's GPU, or one of --gpu_memory, as one line.
    fit: bool = False
    # Print JSON, in bytes, instead of tables.
    json: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, num_processes=(1, None), images=(0.01, 100), gpu_memory=(1, None))


def main(args: list[str]) -> int:
    """Run `depi estimate`."""
    own, training = take_flags(args, EstimateConfig)
    config = parse_flags(EstimateConfig, own, "depi estimate")
    training = check_train_flags(training)
    # Help and wrong flags are handled before slow imports.
    from depi.training.command_line import read_train_config
    from depi.training.fitting import plans

    train_config = read_train_config(training)
    policy: Any = train_config.policy
    if train_config.precision_open:  # a GPU decides so
        policy.dtype = "bfloat16"
    ways = list(plans(train_config, images=config.images, processes=config.num_processes))
    if config.fit:
        print(fitting_flags(ways, _memory(config)))
        return 0
    fitting = {name: _by_what_is_trained(ways, size) for name, size in _cards(config).items()}
    if config.json:
        print(json.dumps(_content(ways[0].estimate, fitting)))
        return 0
    console = Console()
    console.print(_parts_table(ways[0].estimate))
    console.print(_cards_table(fitting))
    return 0


def fitting_flags(ways: "Sequence[Plan]", memory: float) -> str:
    """The flags with which training as asked fits `memory` bytes; none, where it does without.

    Raises:
        UserError: it fits with none, but perhaps something else can be trained.
    """
    from depi.training.fitting import ASKED, first_that_fits, remedy

    found = first_that_fits((plan for plan in ways if plan.trained == ASKED), memory)
    if found is None:
        raise UserError(
            f"this does not fit {memory / 1e9:.0f} GB; {remedy(first_that_fits(iter(ways), memory))}"
        )
    return found.line()


def _memory(config: EstimateConfig) -> float:
    """Bytes of the GPU that is asked for: --gpu_memory, or the smallest one here."""
    if config.gpu_memory is not None:
        return config.gpu_memory * 1e9
    import torch

    sizes = [
        torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count())
    ]
    if not sizes:
        raise UserError("--fit finds no GPU here: say how many GB yours has, such as --gpu_memory=24")
    return min(sizes)


def _cards(config: EstimateConfig) -> dict[str, float]:
    """Bytes by name. A card of 24 GB has 25.8e9 bytes, one of 80 up to 85.5e9: the rest is a reserve."""
    import torch

    cards = {f"{size} GB": size * 1e9 for size in CARDS_GB}
    if config.gpu_memory is not None:
        cards[f"{config.gpu_memory:g} GB"] = config.gpu_memory * 1e9
    for device in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(device)
        cards[f"this {name}"] = torch.cuda.get_device_properties(device).total_memory
    return cards


def _by_what_is_trained(ways: "Sequence[Plan]", memory: float) -> "list[Plan]":
    """Of each thing to train the first plan that fits."""
    from depi.training.fitting import first_that_fits

    kinds = dict.fromkeys(plan.trained for plan in ways)
    found = [first_that_fits((plan for plan in ways if plan.trained == kind), memory) for kind in kinds]
    return [plan for plan in found if plan is not None]


def _content(asked: "Estimate", fitting: "Mapping[str, list[Plan]]") -> dict[str, object]:
    cards = {
        name: [{"trained": p.trained, "flags": p.flags, "total": p.estimate.total} for p in found]
        for name, found in fitting.items()
    }
    return {**asked.to_dict(), "cards": cards}


def _parts_table(estimate: "Estimate") -> Table:
    title = f"{estimate.parameters / 1e6:,.0f} M parameters, {estimate.trainable / 1e6:,.0f} M trained"
    table = Table("each GPU", title=title)
    table.add_column("GB", justify="right")
    for name, size in estimate.parts.items():
        table.add_row(name, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{estimate.total / 1e9:.2f}")
    return table


def _cards_table(fitting: "Mapping[str, list[Plan]]") -> Table:
    table = Table("GPU", "what is trained")
    table.add_column("flags to add", overflow="fold")
    table.add_column("GB", justify="right")
    for name, found in fitting.items():
        table.add_section()
        if not found:
            table.add_row(name, "nothing fits")
        for plan in found:
            total = f"{plan.estimate.total / 1e9:.1f}"
            table.add_row(name, plan.trained, plan.line().replace(" ", "\n") or "none", total)
            name = ""
    return table
