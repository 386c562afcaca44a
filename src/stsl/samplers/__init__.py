"""One file per method; one line per method here."""

from stsl.samplers.base import Sampler, State, knob
from stsl.samplers.ddrm import DDRM
from stsl.samplers.diffpir import DiffPIR
from stsl.samplers.dmps import DMPS
from stsl.samplers.dps import DPS
from stsl.samplers.gml_dps import GMLDPS
from stsl.samplers.latent_daps import LatentDAPS
from stsl.samplers.ldir import LDIR
from stsl.samplers.ldps import LDPS
from stsl.samplers.mcg import MCG
from stsl.samplers.p2l import P2L
from stsl.samplers.psld import PSLD
from stsl.samplers.resample import ReSample
from stsl.samplers.score_sde import ScoreSDE
from stsl.samplers.stsl import STSL

SAMPLERS: dict[str, type[Sampler]] = {
    "stsl": STSL,
    "psld": PSLD,
    "gml_dps": GMLDPS,
    "ldps": LDPS,
    "p2l": P2L,
    "ldir": LDIR,
    "resample": ReSample,
    "latent_daps": LatentDAPS,
    "dps": DPS,
    "mcg": MCG,
    "dmps": DMPS,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "score_sde": ScoreSDE,
}

__all__ = [
    "DDRM",
    "DMPS",
    "DPS",
    "GMLDPS",
    "LDIR",
    "LDPS",
    "MCG",
    "P2L",
    "PSLD",
    "SAMPLERS",
    "STSL",
    "DiffPIR",
    "LatentDAPS",
    "ReSample",
    "Sampler",
    "ScoreSDE",
    "State",
    "knob",
]
