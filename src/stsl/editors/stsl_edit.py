"""Editing with cross-attention tuning: STSL-CAT for corrupted photos, NTI-CAT for clean ones."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

from stsl import tasks
from stsl.editors.base import Edit, Editor, Inversion, inverting, restoring
from stsl.editors.inversion import DDIMInversion
from stsl.editors.nti import retracing
from stsl.editors.null_text import NullText
from stsl.editors.tuning import CrossAttentionTuning
from stsl.loop import Frame
from stsl.problem import Problem
from stsl.rng import Rng
from stsl.samplers.base import Sampler, knob
from stsl.samplers.stsl import STSL

TUNING = frozenset({"lam", "eta", "probes", "measured", "nu", "vit"})
PIVOTS = ("reinvert", "zref")


@dataclass(frozen=True)
class NTICAT(Editor):
    """`NTI` whose edit is held to the photo by cross-attention tuning, with the photo itself as the measurement.

    Source: Rout et al. 2024, arXiv:2312.00852, section 5.3 and Table 4(f). The paper does not say what y and A are:
    here A is the identity and y the image that is inverted.
    """

    source = "Rout et al. 2024, arXiv:2312.00852, section 5.3"
    edits_only = TUNING

    steps: int = knob(50, "T: steps up, and down", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    null_steps: int = knob(10, "most steps on the negative embedding per level", low=0, high=1000)
    null_lr: float = knob(0.01, "step length of Adam on it at the first level", low=0.0, high=10.0)
    null_stop: float = knob(1e-5, "mean squared error that is near enough, at the first level", low=0.0, high=1.0)
    lam: float = knob(0.1, "weight of the measurement; 1 in the paper", low=0.0, high=1e6)
    eta: float = knob(0.02, "weight of the trace, divided by the latent size", low=0.0, high=1e6)
    probes: int = knob(1, "N: random probes of the trace", low=0, high=64)
    measured: float = knob(0.6, "share of the steps that follow the measurement", low=0.0, high=1.0)
    nu: float = knob(0.0, "weight of the contrastive ViT loss in the others", low=0.0, high=1e6)
    vit: str = knob("", "ViT of the contrastive loss: a name, a folder or a hub id; empty is faces-vit")
    restorer: Sampler | None = None

    def stages(self) -> list[Sampler]:
        return _stages(self)

    def inverting(self, problem: Problem, source: str, rng: Rng) -> Generator[Frame, None, Inversion]:
        image, _ = yield from restoring(problem, self.restorer, rng)
        trajectory = yield from inverting(problem, image, source, self.steps, rng)
        return (yield from retracing(problem, image, trajectory, source, _null(self), rng))

    def guide(self, problem: Problem, inversion: Inversion) -> Problem:
        identity = tasks.make("denoise", problem.prior.image_shape).to(problem.y.device)
        return replace(problem, y=inversion.image, physics=identity)


@dataclass(frozen=True)
class STSLCAT(Editor):
    """Restore, tune the negative embeddings along a clean trajectory, edit with cross-attention tuning.

    1. `restorer` (STSL) restores the measurement.
    2. Null-text optimisation follows a trajectory that ends at the restored image: with pivot="reinvert" its DDIM
       inversion under the source prompt; with pivot="zref" the restorer's own latents, after their refinement, which is
       the paper's objective and needs as many steps of the restorer as of the edit.
    3. The edit is held to the measurement, and then to what a ViT sees in it: `CrossAttentionTuning`.

    Source: Rout et al. 2024, arXiv:2312.00852, section 3.3 and Algorithm 2. Departures: stages 2 and 3 are two passes
    where the listing merges them, since otherwise the embedding of a level would be tuned on latents that are edited
    already; the restorer's trajectory is that of the empty prompt, so "reinvert" is the default; the DDIM step has the
    right sign.
    """

    source = "Rout et al. 2024, arXiv:2312.00852, Algorithm 2"
    edits_only = TUNING

    steps: int = knob(50, "T: steps of the inversion and of the edit", low=1, high=1000)
    guidance: float = knob(7.5, "w: guidance scale", low=0.0, high=100.0)
    null_steps: int = knob(10, "most steps on the negative embedding per level", low=0, high=1000)
    null_lr: float = knob(0.01, "step length of Adam on it at the first level", low=0.0, high=10.0)
    null_stop: float = knob(1e-5, "mean squared error that is near enough, at the first level", low=0.0, high=1.0)
    pivot: str = knob("reinvert", "trajectory of the null-text optimisation: reinvert or zref", choices=PIVOTS)
    lam: float = knob(0.1, "weight of the measurement; 1 in the paper", low=0.0, high=1e6)
    eta: float = knob(0.02, "weight of the trace, divided by the latent size", low=0.0, high=1e6)
    probes: int = knob(1, "N: random probes of the trace", low=0, high=64)
    measured: float = knob(0.6, "share of the steps that follow the measurement", low=0.0, high=1.0)
    nu: float = knob(0.0, "weight of the contrastive ViT loss in the others", low=0.0, high=1e6)
    vit: str = knob("", "ViT of the contrastive loss: a name, a folder or a hub id; empty is faces-vit")
    restorer: Sampler = field(default_factory=lambda: STSL.preset("balanced"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivot not in PIVOTS:
            raise ValueError(f"STSLCAT: pivot = {self.pivot!r}; choose one of {', '.join(PIVOTS)}")

    def stages(self) -> list[Sampler]:
        return _stages(self)

    def inverting(self, problem: Problem, source: str, rng: Rng) -> Generator[Frame, None, Inversion]:
        image, trajectory = yield from restoring(problem, self.restorer, rng)
        if self.pivot == "reinvert":
            trajectory = yield from inverting(problem, image, source, self.steps, rng)
        return (yield from retracing(problem, image, trajectory, source, _null(self), rng))

    def inversion_settings(self) -> dict[str, Any]:
        """As of `NTI` behind the same restorer, whose inversion this is with pivot="reinvert"."""
        settings = super().inversion_settings()
        return settings if self.pivot == "zref" else {k: v for k, v in settings.items() if k != "pivot"}

    def check(self, problem: Problem, edit: Edit) -> None:
        super().check(problem, edit)
        down = [pair for pair in self.restorer.plan(problem.schedule) if pair[1] < pair[0]]
        if self.pivot == "zref" and down != problem.schedule.descend(self.steps):
            raise ValueError(
                f'STSLCAT: pivot="zref" follows the restorer\'s own latents, of {len(down)} levels where the edit has '
                f'{self.steps}: give both the same steps, or use pivot="reinvert"'
            )


def _null(editor: NTICAT | STSLCAT) -> NullText:
    return NullText(editor.steps, editor.guidance, editor.null_steps, editor.null_lr, editor.null_stop)


def _stages(editor: NTICAT | STSLCAT) -> list[Sampler]:
    return [
        DDIMInversion(editor.steps),
        _null(editor),
        CrossAttentionTuning(
            editor.steps,
            editor.guidance,
            editor.lam,
            editor.eta,
            editor.probes,
            editor.measured,
            editor.nu,
            editor.vit,
        ),
    ]
