import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from depi import train
from depi.errors import UserError
from depi.flags import check_flags, parse_flags
from depi.other_programs import FLAGS, TRAIN
from depi.training.lerobot_flags import refuse_other_programs

PACKAGE = Path(train.__file__).parent
TRAIN_SOURCE = PACKAGE / "training" / "config.py"


@dataclass
class Inner:
    """What is inside."""

    # Which frames.
    frames: list[int] | None = None
    loud: bool = False


@dataclass
class Example:
    """An example."""

    # Who it is,
    # in two lines.
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    list_rules: bool = False
    count: int = 1
    items: list[str] = field(default_factory=list)
    root: Path | None = None

    def __post_init__(self):
        if self.count < 0:
            raise ValueError(f"count must not be negative, not {self.count}")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Example()),
        (["--list-rules"], Example(list_rules=True)),
        (["--list_rules", "--count=2"], Example(list_rules=True, count=2)),
        (["--list-rules=false"], Example()),
        (["--list-rules", "false"], Example()),
        (["--name", "a=b"], Example(name="a=b")),
        (["--items=[a,b]"], Example(items=["a", "b"])),
        (["--items=a,b"], Example(items=["a", "b"])),
        (["--items", "a", "b", "--count=2"], Example(items=["a", "b"], count=2)),
        (["--items=a"], Example(items=["a"])),
        (["--inner.frames=0,2"], Example(inner=Inner([0, 2]))),
        (["--inner.frames", "0", "2", "--inner.loud"], Example(inner=Inner([0, 2], loud=True))),
        (["--inner.frames=null", "--inner.loud=false"], Example()),
        (["first"], Example(name="first")),
        (["first", "--count", "3"], Example(name="first", count=3)),
    ],
)
def test_flags_and_positionals_fill_the_dataclass(args, expected):
    assert parse_flags(Example, args, "depi example", positionals=("name",)) == expected


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--nmae=x"], "unknown flag --nmae: did you mean --name?"),
        (["--loud"], "did you mean --inner.loud?"),
        (["--qqqq"], "none of a similar name; see `depi example --help`"),
        (["--help=outer"], "--help=outer is none of inner"),
        (["--inner.frames=a"], "inner.frames"),
        (["--count=many"], "--count: Couldn't parse 'many'"),
        (["--count=-1"], "count must not be negative, not -1"),
        (["--list-rules=7"], "7"),
        (["--count"], "--count"),
        (["--count", "--list-rules"], "--count"),
        (["--name"], "--name"),
        (["--root="], "--root is empty"),
        (["--root", ""], "--root is empty"),
        (["--config_path=absent.yaml"], "cannot read absent.yaml"),
        (["--config_path=/dev/null/x"], "/dev/null/x"),
        (["--items=[a"], "YAML"),
    ],
)
def test_wrong_flags_are_one_sentence(args, says):
    with pytest.raises(UserError) as caught:
        parse_flags(Example, args, "depi example")
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).startswith("depi example")


def test_help_groups_the_flags_with_their_comments(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_flags(Example, ["first", "--help"], "depi example", positionals=("name",))
    assert stop.value.code == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "usage: depi example NAME [--flag=value ...]",
        "",
        "An example.",
        "",
        "--name=x Who it is, in two lines.",
        "--list_rules=false",
        "--count=1",
        "--items=[]",
        "--root=PATH",
        "",
        "inner: What is inside.",
        "--inner.frames=LIST[INT] Which frames.",
        "--inner.loud=false",
    ]


def check_train(*args: str) -> None:
    check_flags(TRAIN_SOURCE, "TrainConfig", args, TRAIN)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--stepz=3"], "did you mean --steps?"),
        (["--lr=1e-4"], "did you mean --policy.optimizer_lr?"),
        (
            ["--policy.type=groot"],
            "--policy.type=groot is none of pi0, pi05, depi_pi0, depi_pi05, value, act, diffusion",
        ),
        (["--policy.type=act", "--policy.down_dims=[8]"], "goes with --policy.type=diffusion"),
        (["--policy.type=pi0", "--policy.vision_depth=2"], "goes with --policy.type=depi_pi0"),
        (["--policy.chunk_size=many"], "--policy.chunk_size"),
        (["--dataset.video_backend=pyav"], "not a flag here: the faster decoder is chosen"),
        (["--optimizer.lr=1e-4"], "--policy.optimizer_lr"),
        (["--device=cuda"], "use --policy.device"),
        (["--dataset.streaming", "true"], "local cache"),
        (["--offline.steps=9"], "use --steps"),
        (["--use_amp=true"], "--policy.dtype=bfloat16"),
        (["--control.policy.path=x"], "lerobot-rollout --policy.path"),
        (["--policy.advantage=on"], "use --advantage.mode=on"),
        (["--dataset_mixture.weights=[1]"], "--dataset.mixture"),
        (["--num_train_steps=9"], "use --steps"),
        (["--env.type=xarm"], "LeRobot has dropped this environment"),
        (["policy=act", "env=pusht"], "policy=act is written --policy.type=act"),
        (["pi05_libero", "--exp-name=x"], "openpi's configurations are flags and files"),
    ],
)
def test_wrong_training_flags_say_what_to_use_instead(args, says):
    with pytest.raises(UserError) as caught:
        check_train(*args)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_lerobots_users_may_type_is_no_flag_of_ours_already():
    for name in FLAGS[TRAIN]:
        with pytest.raises(UserError, match="is not a flag here"):
            check_train(f"--{name.replace('*', 'x')}=1")


@pytest.mark.parametrize(
    ("command", "source", "class_name", "typed", "meant"),
    [
        (TRAIN, TRAIN_SOURCE, "TrainConfig", "--repo_ids=x.json", "--dataset.repo_ids=x.json"),
        (TRAIN, TRAIN_SOURCE, "TrainConfig", "--repo-id=a/b", "--dataset.repo_id=a/b"),
        (TRAIN, TRAIN_SOURCE, "TrainConfig", "--ids_file=x", "--dataset.repo_ids=x"),
        ("depi annotate", PACKAGE / "annotate/annotate.py", "AnnotateConfig", "--dataset.root=x", "--root=x"),
        ("depi view", PACKAGE / "catalog/view.py", "ViewConfig", "--episode-index=3", "--episode=3"),
    ],
)
def test_other_names_of_datasets_are_accepted_with_a_hint(command, source, class_name, typed, meant, caplog):
    assert check_flags(source, class_name, [typed], command) == [meant]
    assert f"is called {meant.partition('=')[0]}; the old name is accepted for now" in caplog.text
    caplog.clear()
    assert check_flags(source, class_name, [meant], command) == [meant]
    assert not caplog.text


def test_a_configuration_of_opentau_is_answered_with_the_words_of_here():
    content = {
        "policy": {"type": "pi0", "advantage": "on", "optimizer_lr": 1e-4},
        "dataset_mixture": {"datasets": [{"repo_id": "a/b"}], "weights": [1.0]},
        "steps": 10,
    }
    with pytest.raises(UserError) as caught:
        refuse_other_programs(content, "x.json")
    said = str(caught.value)
    assert said.startswith("x.json is the configuration of another program (docs/coming-from.md)")
    assert "policy.advantage: use --advantage.mode=on" in said
    assert said.count("--dataset.mixture") == 1
    refuse_other_programs({"policy": {"type": "pi0"}, "steps": 10, "optimizer": {"lr": 1.0}}, "x.json")


def test_training_help_is_short_and_has_every_flag(capsys):
    texts = {}
    for section in ("", "policy", "peft", "wandb"):
        with pytest.raises(SystemExit):
            check_train(f"--help={section}" if section else "--help")
        texts[section] = capsys.readouterr().out
    assert len(texts[""].splitlines()) < 210
    assert "--help=policy" in texts[""]
    assert "--dataset.repo_id=" in texts[""]
    assert "--wandb.project=depi" in texts["wandb"]
    assert "--peft.r=16" in texts["peft"]
    with pytest.raises(SystemExit):
        check_train("--help=policy", "--policy.type=act")
    of_act = capsys.readouterr().out
    assert "--policy.dim_model=512" in of_act
    assert "--policy.down_dims" not in of_act
    from lerobot.policies.pi0.configuration_pi0 import PI0Config

    for name in PI0Config.__dataclass_fields__:
        assert f"--policy.{name}" in texts["policy"], name


@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--stepz=3", 2), ("--steps=x", 2)])
def test_help_and_wrong_flags_import_nothing_heavy(flag, status):
    code = (
        "import sys; from depi.train import main\n"
        f"try: status = main([{flag!r}])\n"
        "except SystemExit as stop: status = stop.code\n"
        "print([name for name in ('torch', 'lerobot', 'transformers') if name in sys.modules], status)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"[] {status}"
