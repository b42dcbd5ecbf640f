"""What strangers' pictures may be: formats of images, codecs of videos, sizes. All else is refused undecoded.

Pillow and FFmpeg know hundreds of formats. Few people have looked for faults in most of that code, some of it
starts other programs (Pillow reads EPS with Ghostscript), and no robot records in them.
"""

from typing import Any

from depi.datasets.recording.checks import short
from depi.datasets.recording.formats import MAX_IMAGE_SIDE
from depi.datasets.recording.mp4 import Mp4Index
from depi.errors import DatasetError

IMAGE_FORMATS = ("JPEG", "PNG")
"""As Pillow names them; what LeRobot writes and what the Hub shows."""
VIDEO_CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg")
"""As FFmpeg names them: LeRobot's three, and what OpenCV and browsers write."""
MAX_PIXELS = 4096 * 4096
"""Of a picture. The stills of 12-megapixel cameras have fewer, to decode one takes up to half a second."""
ANY_DECLARED_PIXELS = 1920 * 1080
"""So many are read whatever was declared."""
_DECODERS = (*VIDEO_CODECS, "libdav1d", "libaom-av1", "libvpx-vp9")
CONTAINER_OPTIONS = {"codec_whitelist": ",".join(_DECODERS)}
"""For `av.open`, which decodes some pictures where a header says too little."""
DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS)}
"""For a decoder: a stream may itself say a larger size than the file's header."""


def check_size(width: int, height: int, declared: tuple[int, int] | None = None) -> None:
    """Refuse the size of a picture before it is decoded.

    Honest recordings differ from what they declare: height and width are exchanged, a side is rounded to what
    the codec can, videos were made smaller or larger later. Pictures up to full HD cost so little (10 ms to
    decode) that they are read in any case; larger ones may have twice as many pixels as declared. A picture
    of 64 megapixels, declared as 48 by 64, would cost seconds for each sample.

    Args:
        width: in pixels.
        height: in pixels.
        declared: (height, width) that the dataset declares, if it is known.

    Raises:
        DatasetError: it has no size, is larger than anything that is read, or far larger than declared.
    """
    if not (0 < width <= MAX_IMAGE_SIDE and 0 < height <= MAX_IMAGE_SIDE and width * height <= MAX_PIXELS):
        raise DatasetError(
            f"a picture is {width} by {height} pixels, at most {MAX_IMAGE_SIDE} a side and {MAX_PIXELS} "
            "in all are read"
        )
    if declared is None:
        return
    if width * height > max(ANY_DECLARED_PIXELS, 2 * declared[0] * declared[1]):
        raise DatasetError(
            f"a picture is {width} by {height} pixels, far more than the declared {declared[1]} by "
            f"{declared[0]}"
        )


def check_codec(stream: Any, index: Mp4Index) -> str:
    """The codec of a video stream of PyAV, by FFmpeg's name.

    Args:
        stream: of an mp4 that is open.
        index: of the same mp4, for the name of a codec that FFmpeg does not know.

    Raises:
        DatasetError: it is none of VIDEO_CODECS, or there is no decoder for it.
    """
    if stream.codec_context is None:
        names = ", ".join(index.sample_entries()[:8])
        raise DatasetError(f"its codec is {short(names)}, for which there is no decoder here")
    codec: str = stream.codec_context.codec.canonical_name
    if codec not in VIDEO_CODECS:
        raise DatasetError(f"its codec is {short(codec)}, only {', '.join(VIDEO_CODECS)} are read")
    return codec
