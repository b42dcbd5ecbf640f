"""The script that measures what the training loop costs."""

import json


def test_the_last_line_is_the_overhead(benchmarks, capsys):
    import loop_overhead

    loop_overhead.main(["--size=smoke", "--batch_size=2", "--steps=2", "--rounds=2", "--log_freq=1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["device"] == "cpu"
    assert result["overhead"] == round(result["overhead"], 4)
    # The reported share is that of the reported times.
    assert abs(result["loop_step_ms"] / result["bare_step_ms"] - 1 - result["overhead"]) < 0.01


def test_both_loops_train(benchmarks, tmp_path):
    import itertools

    import loop_overhead
    import torch

    options = loop_overhead.parse(["--size=smoke", "--batch_size=2"])
    run, batches = loop_overhead.make_run(options, tmp_path)
    for steps in (loop_overhead.bare_steps, loop_overhead.loop_steps):
        before = [parameter.detach().clone() for parameter in run.policy.parameters()]
        steps(run, itertools.cycle(batches), 2)
        after = list(run.policy.parameters())
        assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert run.step == 2
