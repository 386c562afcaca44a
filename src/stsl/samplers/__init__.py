"""One file per method; one line per method here."""

from stsl.samplers.base import Sampler, State, knob
from stsl.samplers.gml_dps import GMLDPS
from stsl.samplers.ldps import LDPS
from stsl.samplers.psld import PSLD
from stsl.samplers.stsl import STSL

SAMPLERS: dict[str, type[Sampler]] = {
    "stsl": STSL,
    "psld": PSLD,
    "gml_dps": GMLDPS,
    "ldps": LDPS,
}

__all__ = ["GMLDPS", "LDPS", "PSLD", "SAMPLERS", "STSL", "Sampler", "State", "knob"]
