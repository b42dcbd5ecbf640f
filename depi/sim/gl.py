"""Choose the OpenGL library of MuJoCo once, before MuJoCo is imported."""

import logging
import os
import subprocess
import sys

logger = logging.getLogger(__name__)

REMEDY = (
    "install EGL (Debian: libegl1 libgl1) or OSMesa (Debian: libosmesa6), and set MUJOCO_GL=egl or osmesa "
    "if MuJoCo is imported before depi.sim"
)


def select_backend() -> str:
    """Set MUJOCO_GL to what this machine can render with and return it.

    A value that the user set is kept. Otherwise EGL is tried, then OSMesa, each in a separate process,
    because MuJoCo binds its OpenGL library when it is imported. "disable" is chosen where neither works:
    physics runs, and rendering raises a UserError.
    """
    if os.environ.get("MUJOCO_GL") or sys.platform != "linux" or "mujoco" in sys.modules:
        return os.environ.get("MUJOCO_GL", "")
    backend = next((name for name in ("egl", "osmesa") if _works(name)), "disable")
    if backend == "osmesa":
        logger.warning("EGL cannot start on this machine; rendering with OSMesa")
    os.environ["MUJOCO_GL"] = backend
    return backend


def _works(backend: str) -> bool:
    """Whether a fresh process can make an OpenGL context with this backend."""
    code = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
