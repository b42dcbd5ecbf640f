"""Checks that `depi doctor` runs in separate processes, because they may take long, crash or hang.

`python -m depi.probes NAME [ARGUMENT]` prints what it found as one line of JSON.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depi.errors import first_line
from depi.priority import priority_kept

CODECS = {"h264": ("libx264", "h264"), "av1": ("libsvtav1", "libaom-av1")}
_FRAMES, _HEIGHT, _WIDTH = 6, 96, 128


def gpus() -> dict[str, Any]:
    """PyTorch's version, its CUDA, and what devices it reaches, with bytes of memory."""
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        with torch.cuda.device(number):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append({"name": name, "free": free, "total": total, "bf16": bf16})
    mps = torch.backends.mps.is_available()
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": devices, "mps": mps}


def pyav() -> dict[str, str]:
    """Codec -> "" where PyAV decodes what it has encoded, else why not."""
    return _each_codec(_decode_with_pyav)


def torchcodec() -> dict[str, str]:
    """Codec -> "" where torchcodec decodes what PyAV has encoded, else why not."""
    return _each_codec(_decode_with_torchcodec)


def _each_codec(decode: Callable[[Path], int]) -> dict[str, str]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for codec in CODECS:
            path = Path(folder, f"{codec}.mp4")
            try:
                _encode(path, codec)
                frames = decode(path)
                found[codec] = "" if frames == _FRAMES else f"{frames} of {_FRAMES} frames came out"
            except Exception as error:  # any exception of a broken library is the finding
                found[codec] = first_line(error)
    return found


@priority_kept()
def _encode(path: Path, codec: str) -> None:
    import av
    import numpy as np

    encoder = next((name for name in CODECS[codec] if name in av.codecs_available), None)
    if encoder is None:
        raise RuntimeError(f"PyAV has none of the encoders {', '.join(CODECS[codec])}")
    av.logging.set_level(av.logging.PANIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=10)
        stream.height, stream.width, stream.pix_fmt = _HEIGHT, _WIDTH, "yuv420p"
        for number in range(_FRAMES):
            image = np.full((_HEIGHT, _WIDTH, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def _decode_with_pyav(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for frame in container.decode(video=0) if frame.to_ndarray(format="rgb24").size)


def _decode_with_torchcodec(path: Path) -> int:
    from torchcodec.decoders import VideoDecoder

    return len(VideoDecoder(str(path)).get_frames_in_range(0, _FRAMES).data)


def rendering() -> dict[str, str]:
    """Which OpenGL renders a MuJoCo frame without a display, and whether it did."""
    from depi.sim.gl import select_backend

    backend = select_backend()
    import mujoco

    scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(scene)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 48, 64) as renderer:
        renderer.update_scene(data)
        image = renderer.render()
    return {"backend": backend or "the display", "problem": "" if image.std() > 1 else "the frame is empty"}


def hub(tokenizer: str) -> dict[str, Any]:
    """Where the Hub is, who is logged in, and whether the tokenizer is in the cache or can be downloaded."""
    from depi.hub.client.api import endpoint
    from depi.hub.client.login import is_cached, may_read, who_am_i

    login = who_am_i()
    cached = is_cached(tokenizer, "tokenizer.json")
    missing = "" if cached else may_read(tokenizer) if login.reachable else "the Hub cannot be reached"
    return {"endpoint": endpoint(), **vars(login), "cached": cached, "missing": missing}


def ray(address: str) -> dict[str, Any]:
    """How many nodes, CPUs and GPUs a cluster has."""
    from depi.engine.cluster import _connect

    client = _connect(address)
    nodes = sum(node["Alive"] for node in client.nodes())
    resources = client.cluster_resources()
    return {"nodes": nodes, "cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0)}


PROBES: dict[str, Callable[..., Any]] = {
    "gpus": gpus,
    "pyav": pyav,
    "torchcodec": torchcodec,
    "rendering": rendering,
    "hub": hub,
    "ray": ray,
}


def main(args: list[str]) -> int:
    """Run the probe that the first argument names, with the other arguments."""
    name, *rest = args
    try:
        print(json.dumps(PROBES[name](*rest)))
    except Exception as error:  # the caller reads this process's one line, whatever a library raises
        print(json.dumps({"error": first_line(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
