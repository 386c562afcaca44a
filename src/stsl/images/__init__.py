"""Photos as users have them: reading, writing, finding, fitting to a prior, showing. The one place that knows PIL."""

from stsl.images.fitting import Box, Fit, cover, find_face, fit, square
from stsl.images.folders import Source, find, outputs, safe_stem
from stsl.images.reading import Photo, decode, read, read_kernel, read_mask
from stsl.images.showing import astronaut_face, comparison
from stsl.images.writing import encode_png, write

__all__ = [
    "Box",
    "Fit",
    "Photo",
    "Source",
    "astronaut_face",
    "comparison",
    "cover",
    "decode",
    "encode_png",
    "find",
    "find_face",
    "fit",
    "outputs",
    "read",
    "read_kernel",
    "read_mask",
    "safe_stem",
    "square",
    "write",
]
