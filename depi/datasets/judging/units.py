"""The rule about the units of episodes, asked when the joint convention has been looked for."""

from collections.abc import Iterator

from depi.datasets.judging.faults import Finding, Recording


def units_agree(recording: Recording) -> Iterator[Finding]:
    """Action and state are in the units of most episodes, with the same zeros and signs."""
    assert recording.detection is not None
    for position, text in recording.detection.unlike:
        yield Finding(position, text)
