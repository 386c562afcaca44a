"""Every preset of the pixel methods against a literal table, typed from the sources and not computed from the classes.

Evidence: C the method's released code, U unconfirmed (recalled, or no single value in the source), D our decision, M
measured by us.
"""

import pytest

from stsl.reconstructors import RECONSTRUCTORS
from stsl.samplers import DDRM, DMPS, DPS, MCG, SAMPLERS, DiffPIR, ScoreSDE

INPAINTING = ("random_inpaint", "box_inpaint", "freeform_inpaint", "mask")
BLURS = ("gaussian_blur", "motion_blur", "kernel")
SR = ("sr4", "sr8")
NEITHER = ("denoise", "salt_pepper", None)
TASKS = (*INPAINTING, *BLURS, *SR, *NEITHER)

TABLE = [
    # method, preset, tasks, evidence, settings
    (DPS, None, TASKS, "C", {"steps": 1000, "zeta": 0.3}),
    (DPS, "ffhq-256", INPAINTING, "C", {"steps": 1000, "zeta": 0.5}),
    (DPS, "ffhq-256", (*BLURS, *SR), "C", {"steps": 1000, "zeta": 0.3}),
    (DPS, "ffhq-256", NEITHER, "D", {"steps": 1000, "zeta": 0.3}),
    (MCG, None, TASKS, "C; level D", {"steps": 1000, "alpha": 1.0, "level": "next", "adjoint": "paper"}),
    (MCG, "ffhq-256", TASKS, "C; level D", {"steps": 1000, "alpha": 1.0, "level": "next", "adjoint": "paper"}),
    (DMPS, None, TASKS, "C", {"steps": 1000, "lam": 1.75, "at": "new", "cutoff": 0.03}),
    (DMPS, "ffhq-256", TASKS, "C", {"steps": 1000, "lam": 1.75, "at": "new", "cutoff": 0.03}),
    (DDRM, None, TASKS, "C", {"steps": 20, "eta": 0.85, "eta_b": 1.0, "cutoff": 0.03}),
    (DDRM, "ffhq-256", TASKS, "C", {"steps": 20, "eta": 0.85, "eta_b": 1.0, "cutoff": 0.03}),
    (DiffPIR, None, TASKS, "C", {"steps": 100, "lam": 7.0, "zeta": 0.3, "spacing": "quad", "paste": True}),
    (DiffPIR, "ffhq-256", BLURS, "C", {"steps": 100, "lam": 7.0, "zeta": 0.3, "spacing": "quad", "paste": True}),
    # The code sweeps λ from 2 to 12 for super-resolution.
    (DiffPIR, "ffhq-256", SR, "C; lam U", {"steps": 100, "lam": 6.0, "zeta": 0.25, "spacing": "quad", "paste": True}),
    (DiffPIR, "ffhq-256", NEITHER, "D", {"steps": 100, "lam": 7.0, "zeta": 0.3, "spacing": "quad", "paste": True}),
    (DiffPIR, "ffhq-256", INPAINTING, "C", {"steps": 100, "lam": 1.0, "zeta": 1.0, "spacing": "quad", "paste": True}),
    (ScoreSDE, None, TASKS, "C; level D", {"steps": 1000, "level": "next", "adjoint": "paper"}),
    (ScoreSDE, "ffhq-256", TASKS, "C; level D", {"steps": 1000, "level": "next", "adjoint": "paper"}),
]
OURS = {"balanced", "fast"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0].__name__}-{row[1]}-{row[2][0]}")
def test_a_preset_is_its_row_for_each_of_its_tasks(row):
    method, preset, tasks, _, settings = row
    for task in tasks:
        chosen = method() if preset is None else method.preset(preset, task)
        assert chosen.settings() == settings


def test_every_published_preset_has_a_row_for_every_task():
    for name in ("dps", "mcg", "dmps", "ddrm", "diffpir", "score_sde"):
        method = SAMPLERS[name]
        for preset in set(method.presets) - OURS:
            covered = [task for m, p, tasks, *_ in TABLE if (m, p) == (method, preset) for task in tasks]
            assert sorted(map(str, covered)) == sorted(map(str, TASKS)), f"{name} {preset}"


def test_the_options_of_a_task_do_not_hide_its_settings():
    assert DPS.preset("ffhq-256", "random_inpaint:drop=0.7") == DPS(zeta=0.5)
    assert DPS.preset("ffhq-256", "random") == DPS.preset("ffhq-256")
    assert DPS.preset("ffhq-256", "") == DPS.preset("ffhq-256")


def test_where_aᵀ_of_the_paper_is_no_projection_our_presets_take_the_exact_one():
    for method in (MCG, ScoreSDE):
        for preset in OURS:
            assert {method.preset(preset, task).adjoint for task in BLURS} == {"exact"}
            assert {method.preset(preset, task).adjoint for task in (*INPAINTING, *SR)} == {"paper"}


@pytest.mark.parametrize("name", ["dps", "mcg", "dmps", "ddrm", "diffpir", "score_sde", "pnp_admm", "admm_tv"])
def test_a_fast_preset_has_at_most_60_evaluations(name):
    method = (SAMPLERS | RECONSTRUCTORS)[name]
    for task in TASKS:
        assert method.preset("fast", task).nfe <= 60


def test_the_reconstructors_settings_are_known_to_be_unconfirmed():
    """Recalled, without a source at hand (U): λ 0.027; ρ 0.14 for deblurring, 0.01 elsewhere; PnP: ρ 0.2, 12 steps."""
    tv, pnp = RECONSTRUCTORS["admm_tv"], RECONSTRUCTORS["pnp_admm"]
    assert {(s.lam, s.rho) for s in (tv.preset("published", task) for task in BLURS)} == {(0.027, 0.14)}
    assert {(s.lam, s.rho) for s in (tv.preset("published", task) for task in (*SR, *INPAINTING))} == {(0.027, 0.01)}
    assert (pnp.preset("published").rho, pnp.preset("published").steps) == (0.2, 12)
