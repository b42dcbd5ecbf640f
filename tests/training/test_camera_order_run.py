"""A run with an order of cameras of the user's own: trained, resumed, evaluated, described."""

from runs import replaced

from depi import cli
from depi.evaluation.config import EnvironmentConfig, EvaluateConfig, PolicyConfig
from depi.evaluation.environments import find_table, resolve
from depi.evaluation.loading import load_actor
from depi.files import read_json
from depi.train import main as train

FRONT, WRIST, TOP = (f"observation.images.{name}" for name in ("front", "wrist", "top"))


def test_a_listed_order_is_trained_resumed_evaluated_and_on_the_card(flags, tmp_path, capfd):
    run, ordered = tmp_path / "run", "--dataset.cameras=front,wrist,top"
    assert train([*replaced(flags, steps=1), "--dataset.cameras=front"]) == 2
    assert "--dataset.cameras=front is none of name, view, " in capfd.readouterr().err
    assert train([*replaced(flags, steps=2), ordered]) == 0
    report = read_json(run / "data_report.json")
    assert [entry["cameras"] for entry in report["datasets"]] == [[FRONT, WRIST], [TOP]]
    checkpoint = run / "checkpoints" / "000002" / "pretrained_model"
    assert "Camera slots: 0 front, 1 wrist, 2 top; a slot" in (checkpoint / "README.md").read_text()

    resume = ["--resume=true", f"--output_dir={run}", "--steps=3"]
    assert train([*resume, "--dataset.cameras=wrist,front,top"]) == 2
    said = f"has cameras ['{WRIST}', '{FRONT}'], the run began with cameras ['{FRONT}', '{WRIST}']"
    assert said in capfd.readouterr().err
    assert train(resume) == 0
    assert read_json(run / "checkpoints/last/pretrained_model/train_config.json")["dataset"]["cameras"] == (
        "front,wrist,top"
    )

    config = EvaluateConfig(policy=PolicyConfig(path=str(run), device="cpu"))
    table = find_table(resolve(EnvironmentConfig(cameras=["top", "front"])))
    slots = load_actor(config)[0]._policy_keys(table)
    assert slots == {TOP: "observation.images.2", FRONT: "observation.images.0"}
    small = ["--policy.device=cpu", "--eval.n_episodes=1", "--eval.n_videos=0", "--env.episode_length=2"]
    assert cli.main(["eval", f"--policy.path={run}", *small, f"--output_dir={tmp_path / 'eval'}"]) == 0
