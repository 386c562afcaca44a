"""Every preset against a literal table, typed from the sources and not computed from the classes.

The evidence column says where a row's numbers come from: P the text of the STSL paper (arXiv:2312.00852), T the slides
of the PSLD talk, C PSLD's released code (arXiv:2307.00619), U unconfirmed, D our decision; several letters where the
numbers of one row have several sources.
"""

import dataclasses

import pytest

from stsl.samplers import GMLDPS, LDPS, PSLD, SAMPLERS, STSL

# Decisions that the paper leaves open hold in every row that does not name them (D).
OPEN = {
    "kappa": 0.0,
    "meas_loss": "norm",
    "refine": "descend",
    "probe_scale": "unit",
    "adjoint": "paper",
    "reuse_last": False,
    "prompt_steps": 0,
    "prompt_lr": 1e-4,
    "vit": "",
}
FIELDS = ("steps", "inner_steps", "probes", "lam", "eta", "nu", "lr", "lr_decay", "init", "reverse", "adam_state")
STSL_TABLE = [
    # preset, evidence, T, K, N, λ, η, ν, lr, decay, init, reverse, Adam
    (None, "P; nu, init, reverse D", 50, 5, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "auto", "ddim", "per_level"),
    ("paper", "P; init, reverse D", 50, 5, 2, 1.0, 0.02, 2.0, 0.01, 0.998, "auto", "ddim", "per_level"),
    # The listing: one probe, unit step of plain descent, its own recursion, DDPM mean.
    ("printed", "P; nu D", 50, 5, 1, 1.0, 0.02, 0.0, 1.0, 1.0, "printed", "ddpm_mean", "none"),
    ("biased", "P; Adam D", 50, 1, 2, 1.0, 0.0, 0.0, 0.01, 0.998, "auto", "ddim", "per_level"),
    # The variants of the paper's ablation, with nu 0 in place of 2.
    ("I", "P; nu D", 50, 5, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "gaussian", "ddim", "per_level"),
    ("II", "P; nu D", 50, 5, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "noise", "ddim", "per_level"),
    ("III", "P; nu D", 200, 5, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "gaussian", "ddim", "per_level"),
    ("IV", "P; nu D", 200, 5, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "noise", "ddim", "per_level"),
    ("V", "P; nu D", 1000, 2, 2, 1.0, 0.02, 0.0, 0.01, 0.998, "noise", "ddim", "per_level"),
]
# Network evaluations as the paper's tables count them; the printed loop has 50 · 5 as well.
NFE = {
    None: (250, "P"),
    "paper": (250, "P"),
    "printed": (250, "P"),
    "biased": (50, "D"),
    "I": (250, "P"),
    "II": (250, "P"),
    "III": (1000, "P"),
    "IV": (1000, "P"),
    "V": (2000, "P"),
}
PSLD_TABLE = [
    # preset, task, evidence, T, ω, γ, gluing kernel, its sigma
    (None, None, "C", 1000, 1.0, 0.1, 0, 7.0),
    ("sd15", None, "C", 1000, 1.0, 0.1, 0, 7.0),
    ("sd15", "sr4", "C", 1000, 1.0, 0.1, 0, 7.0),
    ("sd15-box", None, "C", 1000, 0.1, 0.01, 0, 7.0),
    ("ldm-ffhq", None, "C", 1000, 0.1, 0.1, 0, 7.0),
    ("ldm-ffhq", "gaussian_blur", "C", 1000, 0.1, 0.1, 0, 7.0),
    ("ldm-ffhq", "box_inpaint", "C", 1000, 0.1, 0.1, 0, 7.0),
    ("ldm-ffhq", "sr4", "C", 1000, 0.9, 0.1, 0, 7.0),
    ("web-demo", None, "T", 200, 1.0, 0.1, 15, 7.0),
]
LDPS_TABLE = [(None, "T formula, C weights", 1000, 1.0), ("sd15", "T formula, C weights", 1000, 1.0)]
GMLDPS_TABLE = [(None, "T formula, U weights", 1000, 1.0, 0.1), ("sd15", "T formula, U weights", 1000, 1.0, 0.1)]


def chosen(method, name, task=None):
    return method() if name is None else method.preset(name, task)


@pytest.mark.parametrize("row", STSL_TABLE, ids=lambda row: str(row[0]))
def test_a_preset_of_stsl_is_its_row(row):
    name, _, *values = row
    sampler = chosen(STSL, name)
    assert sampler.settings() == dict(zip(FIELDS, values, strict=True)) | OPEN
    assert sampler.nfe == NFE[name][0]


@pytest.mark.parametrize("row", PSLD_TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_preset_of_psld_is_its_row(row):
    name, task, _, steps, omega, gamma, kernel, kernel_sigma = row
    assert chosen(PSLD, name, task).settings() == {
        "steps": steps,
        "omega": omega,
        "gamma": gamma,
        "kernel": kernel,
        "kernel_sigma": kernel_sigma,
        "adjoint": "paper",
    }


@pytest.mark.parametrize("row", LDPS_TABLE, ids=lambda row: str(row[0]))
def test_a_preset_of_ldps_is_its_row(row):
    name, _, steps, omega = row
    assert chosen(LDPS, name).settings() == {"steps": steps, "omega": omega}


@pytest.mark.parametrize("row", GMLDPS_TABLE, ids=lambda row: str(row[0]))
def test_a_preset_of_gmldps_is_its_row(row):
    name, _, steps, omega, gamma = row
    assert chosen(GMLDPS, name).settings() == {"steps": steps, "omega": omega, "gamma": gamma}


# Evidence of all: measured on validation faces, docs/methods.md ("ours").
OURS_TABLE = [
    (STSL, "balanced", {"steps": 30, "inner_steps": 5, "probes": 0, "eta": 0.0, "lr": 0.03, "reuse_last": True}),
    (STSL, "fast", {"steps": 20, "inner_steps": 3, "probes": 0, "eta": 0.0, "lr": 0.03, "reuse_last": True}),
    (PSLD, "balanced", {"steps": 250, "omega": 1.0, "gamma": 0.1, "kernel": 0}),
    (PSLD, "fast", {"steps": 60, "omega": 3.0, "gamma": 0.3, "kernel": 0}),
    (LDPS, "balanced", {"steps": 250, "omega": 1.0}),
    (LDPS, "fast", {"steps": 60, "omega": 3.0}),
    (GMLDPS, "balanced", {"steps": 250, "omega": 1.0, "gamma": 0.1}),
    (GMLDPS, "fast", {"steps": 60, "omega": 3.0, "gamma": 0.3}),
]


@pytest.mark.parametrize(("method", "name", "settings"), OURS_TABLE)
def test_a_preset_of_our_own_is_its_row(method, name, settings):
    assert method.preset(name) == method(**settings)


def test_presets_that_no_paper_has_are_known_to_be_ours():
    """A preset in neither table nor this set was added without evidence."""
    ours = {"balanced", "fast"}
    tables = {
        STSL: {row[0] for row in STSL_TABLE},
        PSLD: {row[0] for row in PSLD_TABLE},
        LDPS: {row[0] for row in LDPS_TABLE},
        GMLDPS: {row[0] for row in GMLDPS_TABLE},
    }
    for method, table in tables.items():
        more = {"calibrated"} if method is STSL else set()  # docs/exactness.md
        assert set(method.presets) == (table | ours | more) - {None}


@pytest.mark.parametrize("method", SAMPLERS.values(), ids=SAMPLERS)
def test_every_preset_of_every_sampler_is_a_valid_setting(method):
    for name in method.presets:
        assert dataclasses.is_dataclass(method.preset(name))


def test_an_unknown_preset_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"STSL has no preset 'biassed', did you mean 'biased'\?; there are paper"):
        STSL.preset("biassed")
    with pytest.raises(ValueError, match=r"PSLD has no preset 'sd15_box', did you mean 'sd15-box'"):
        PSLD.preset("sd15_box")
    with pytest.raises(ValueError, match=r"LDPS has no preset 'wwww'; there are sd15"):
        LDPS.preset("wwww")


def test_an_unknown_choice_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"STSL: init = 'gausian'.*did you mean 'gaussian'"):
        STSL(init="gausian")
