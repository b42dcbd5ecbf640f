import os
import subprocess
import sys

import pytest

from depi.sim import gl


@pytest.fixture
def linux_before_mujoco(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(gl.sys, "platform", "linux")
    tried = []

    def machine_with(*backends):
        monkeypatch.setattr(gl, "_works", lambda name: tried.append(name) or name in backends)
        return tried

    return machine_with


def test_egl_is_preferred(linux_before_mujoco):
    tried = linux_before_mujoco("egl", "osmesa")
    assert gl.select_backend() == os.environ["MUJOCO_GL"] == "egl"
    assert gl.select_backend() == "egl"
    assert tried == ["egl"]


def test_osmesa_is_the_fallback_and_said_once(linux_before_mujoco, caplog):
    linux_before_mujoco("osmesa")
    assert [gl.select_backend(), gl.select_backend()] == ["osmesa", "osmesa"]
    assert [record.message for record in caplog.records] == [
        "EGL cannot start on this machine; rendering with OSMesa"
    ]


def test_without_either_nothing_is_rendered(linux_before_mujoco):
    linux_before_mujoco()
    assert gl.select_backend() == "disable"


def test_the_users_choice_stays(linux_before_mujoco, monkeypatch):
    tried = linux_before_mujoco("egl")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl.select_backend() == "osmesa"
    assert tried == []


def test_rendering_without_opengl_names_the_packages_and_physics_runs():
    code = """
from depi.errors import UserError
from depi.sim.env import make_env
from depi.sim.rollout import ExpertConfig, measure_expert
assert measure_expert(ExpertConfig(task="touch", episodes=1))["successes"] == 1
try:
    make_env("touch").reset(seed=0)
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "libegl1" in done.stdout
    assert "libosmesa6" in done.stdout


def test_an_impossible_backend_does_not_work():
    assert not gl._works("nonsense")
