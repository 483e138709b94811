"""Small films in files."""

from fractions import Fraction

import numpy as np


def write_film(path, frames, fps=24, codec="libx264", size=(48, 64), **options):
    """Frames, each a number (grey) or an array (H, W, 3), as a file, a whole picture every 12."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.pix_fmt, stream.gop_size = "yuv420p", options.pop("gop", 12)
        stream.options = options
        stream.height, stream.width = size
        for index, value in enumerate(frames):
            picture = value if np.ndim(value) else np.full((*size, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)
