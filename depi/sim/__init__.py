"""Simulated SO-101 tasks with scripted experts, recorded as LeRobot datasets.

`depi.sim.setup` describes one contributor's rig, `depi.sim.env` makes the gymnasium environment,
`depi.sim.expert` solves its tasks, `depi.sim.record` writes datasets, `depi.sim.community` holds a small
decentralised community of contributors.
"""
