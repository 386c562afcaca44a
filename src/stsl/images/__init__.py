"""Photos as users have them: reading, writing, finding, fitting to a prior, showing. The one place that knows PIL."""

from stsl.images.fit import Fit, find_face, fit
from stsl.images.inputs import Source, find, outputs, safe_stem
from stsl.images.photo import Photo, read, read_kernel, read_mask
from stsl.images.pictures import astronaut_face, comparison
from stsl.images.write import write

__all__ = [
    "Fit",
    "Photo",
    "Source",
    "astronaut_face",
    "comparison",
    "find",
    "find_face",
    "fit",
    "outputs",
    "read",
    "read_kernel",
    "read_mask",
    "safe_stem",
    "write",
]
