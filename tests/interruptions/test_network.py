"""Long commands whose Hub answers slowly, cuts answers off, goes away and comes back."""

import pytest
from interruptible import TASKS, drafts, environment, finish, start
from unreliable_link import unreliable_link

CHEAP = ("collect-ids",)
NAMES = [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]


# Most of the time goes to starting the command.
TIME = pytest.mark.timeout(900)


def disturbed(work, expected, tmp_path, name, seconds):
    task, out = TASKS[name], tmp_path / f"disturbed-{name}-{seconds:g}"
    with unreliable_link(work.hub.endpoint) as link:
        link.delay, link.cuts = 0.01, 3
        gone = link.go_down_for(seconds, after=6)
        process = start(task.command(work, out), environment(tmp_path, HF_ENDPOINT=link.endpoint))
        status, said = finish(process)
        assert not gone.is_alive(), "the Hub was not away while it was needed"
    assert status == 0, said
    assert task.result(work, out) == expected(name)
    assert drafts(tmp_path, work.annotations) == []


@TIME
@pytest.mark.parametrize("name", NAMES)
def test_a_hub_that_is_slow_cuts_answers_and_goes_away_for_seconds(work, expected, tmp_path, name):
    disturbed(work, expected, tmp_path, name, 3)


@TIME
@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_hub_that_goes_away_for_a_minute(work, expected, tmp_path, name):
    disturbed(work, expected, tmp_path, name, 60)
