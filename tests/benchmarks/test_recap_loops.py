"""Independent loops of RECAP, and what they show together."""

import json

import numpy as np
import pytest
from PIL import Image

from depi.files import read_json


@pytest.fixture
def script(benchmarks):
    import recap_loops

    return recap_loops


def test_loops_have_their_own_demonstrations_rollouts_and_trainings_but_one_evaluation(script, tmp_path):
    options = script.parse([f"--output_dir={tmp_path}", "--guidance=2", "--share=0.4", "--dropout=0.2"])
    loops = [read_json(script.loop_file(options, number)) for number in range(3)]
    for name, of in {
        "demonstrations": lambda loop: loop["demonstrations"][0]["root"],
        "rollouts": lambda loop: loop["rollouts"]["seed"],
        "training": lambda loop: loop["train"]["seed"],
    }.items():
        assert len({of(loop) for loop in loops}) == 3, name
    for loop in loops:
        assert loop["evaluation"]["seed"] == script.FIRST_SEED
        assert loop["evaluation"]["eval"]["n_episodes"] == 200
        assert loop["evaluation"]["policy"] == loop["rollouts"]["policy"] == {"guidance": 2.0}
        assert (loop["advantage"]["share"], loop["advantage"]["look_ahead"]) == (0.4, 50)
        assert loop["policy"]["advantage"] == {"dropout": 0.2}
        assert loop["policy"]["steps"] == loop["sft"]["steps"] == 1600
        assert loop["baselines"] == ["no_advantages", "successes"]


def test_what_loops_have_in_common_does_not_widen_a_difference(benchmarks):
    """Loops begin from unlike policies; within each, one row is 0.2 above the other."""
    import bootstrap

    rng = np.random.default_rng(0)
    rates = np.array([0.2, 0.5, 0.7])
    wins = rng.random((2, 3, 200)) < np.stack([rates, rates + 0.2])[:, :, None]
    played = {
        name: bootstrap.Played(wins[row], np.zeros(200, np.int64))
        for row, name in enumerate(("same", "more"))
    }
    widths = []
    for together in (True, False):
        low, high = bootstrap.compare_all(played, together=together, draws=400)["more"].difference_interval
        assert low < 0.2 < high
        widths.append(high - low)
    assert widths[0] < 0.5 * widths[1]


def test_the_table_is_that_of_the_kept_outcomes(script, tmp_path, capsys):
    loop = {"SFT": "0000", "same data, no advantages": "0011", "iteration 1": "0111"}
    kept = {"seeds": [0, 1, 2, 3], "loops": [loop, {**loop, "iteration 1": "1111"}]}
    path = tmp_path / "outcomes.json"
    path.write_text(json.dumps(kept))
    assert script.main([f"--outcomes={path}"]) == 0
    policies = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert list(policies) == ["same data, no advantages", "SFT", "iteration 1"]
    assert policies["iteration 1"]["evaluation"]["trainings"] == [0.75, 1.0]
    assert policies["iteration 1"]["evaluation"]["difference"] == 0.375
    assert policies["SFT"]["evaluation"]["difference"] == -0.5
    assert Image.open(tmp_path / "outcomes.png").size[0] > 400


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_small_loops_are_run_and_kept(script, tmp_path, capsys):
    flags = ["--smoke", "--loops=2", "--iterations=1", f"--output_dir={tmp_path}"]
    assert script.main(flags) == 0
    policies = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert list(policies) == [
        *("same data, no advantages", "SFT", "iteration 1", "successes alone, no advantages")
    ]
    for row in policies.values():
        assert row["evaluation"]["episodes"] == 2
        assert len(row["evaluation"]["trainings"]) == 2
    assert script.main([f"--outcomes={tmp_path / 'outcomes.json'}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["policies"] == policies
    before = (tmp_path / "loop_0" / "recap" / "results.json").read_bytes()
    assert script.main(flags) == 0
    assert (tmp_path / "loop_0" / "recap" / "results.json").read_bytes() == before
