"""Every preset of the later latent methods against a literal table, typed from the sources and not from the classes.

The evidence column says where a row's numbers come from: P the text of the STSL paper (arXiv:2312.00852), which reports
on P2L; S a secondary source (for P2L the re-implementation in LATINO's repository); C the method's released code;
U unconfirmed; D our decision; several letters where the numbers of one row have several sources.
"""

import pytest

from stsl.samplers import LDIR, P2L, LatentDAPS, ReSample

INPAINTING = ("random_inpaint", "box_inpaint", "freeform_inpaint")
OTHERS = ("motion_blur", "gaussian_blur", "denoise", "salt_pepper")

P2L_FIELDS = ("steps", "prompt_steps", "prompt_lr", "rho", "optimiser", "every", "lam")
P2L_TABLE = [
    # preset, task, evidence, T, K, lr of the prompt, ρ, step of the latent, γ, λ, evaluations
    (None, None, "S; K P", 1000, 1, 1e-4, 0.05, "plain", 8, 1.0, 2000),
    *(("sd15", task, "S; K P", 1000, 1, 1e-4, 0.05, "plain", 8, 1.0, 2000) for task in ("sr4", "sr8")),
    *(
        ("sd15", task, "S; K P", 1000, 1, 1e-4, 0.05, "adam", 8, 1.0, 2000)
        for task in (None, *INPAINTING, *OTHERS, "motion_blur:match=stsl512")
    ),
    *(("best", task, "S; K P", 1000, 4, 1e-4, 0.05, "plain", 8, 1.0, 5000) for task in ("sr4", "sr8")),
    *(("best", task, "S; K P", 1000, 4, 1e-4, 0.05, "adam", 8, 1.0, 5000) for task in (None, *INPAINTING, *OTHERS)),
    *(("fast", task, "D", 30, 1, 1e-4, 6.0, "plain", 4, 0.1, 60) for task in ("sr4", "sr8")),
    *(("fast", task, "D", 30, 1, 1e-4, 2.0, "plain", 4, 0.1, 60) for task in (None, *INPAINTING, *OTHERS)),
]

LDIR_FIELDS = ("steps", "rho", "beta1", "beta2", "update", "meas_loss")
LDIR_TABLE = [
    # preset, task, evidence, T, ρ, β₁, β₂, use of the history, loss, evaluations
    (None, None, "U; evaluations P", 1000, 0.01, 0.9, 0.999, "adam", "sqnorm", 1000),
    ("fast", None, "D", 60, 0.1, 0.9, 0.9, "adam", "norm", 60),
]

RESAMPLE_FIELDS = (
    "steps",
    "zeta",
    "every",
    "travel",
    "gamma",
    "pixel_steps",
    "pixel_lr",
    "latent_steps",
    "latent_lr",
)
RESAMPLE_TABLE = [
    # preset, task, evidence, T, ζ, every, travel, γ, steps and lr on pixels, steps and lr on latents, evaluations
    (None, None, "C", 500, 0.5, 10, 5, 40.0, 2000, 1e-2, 500, 5e-3, 665),
    *(
        ("ldm-ffhq", task, "C", 500, 0.5, 10, 5, 40.0, 2000, 1e-2, 500, 5e-3, 665)
        for task in (None, "sr4", "sr8", *OTHERS)
    ),
    *(("ldm-ffhq", task, "C", 500, 0.5, 10, 5, 40.0, 2000, 1e-2, 200, 5e-3, 665) for task in INPAINTING),
    ("fast", None, "D", 45, 10.0, 10, 5, 40.0, 2000, 1e-2, 50, 2e-2, 60),
]

DAPS_FIELDS = (
    "steps",
    "sigma_max",
    "sigma_min",
    "ode_steps",
    "mcmc_steps",
    "lr",
    "lr_min_ratio",
    "momentum",
    "tau",
)
DAPS_TABLE = [
    # preset, task, evidence, levels, first σ, last σ, ODE, Monte Carlo steps, lr, its end, momentum, τ, evaluations
    (None, None, "C", 50, 10.0, 0.1, 2, 40, 1e-5, 1.0, 0.9, 0.01, 100),
    ("sd15", "gaussian_blur", "C", 50, 10.0, 0.1, 2, 40, 1e-5, 1.0, 0.9, 0.01, 100),
    ("sd15", "sr4", "C", 50, 10.0, 0.1, 2, 30, 1e-4, 1.0, 0.45, 0.01, 100),
    ("sd15", "sr8", "D", 50, 10.0, 0.1, 2, 30, 1e-4, 1.0, 0.45, 0.01, 100),
    ("sd15", "motion_blur", "C", 50, 10.0, 0.1, 2, 30, 2e-5, 1.0, 0.85, 0.01, 100),
    ("sd15", "random_inpaint", "C", 50, 10.0, 0.1, 2, 15, 3e-5, 1.0, 0.6, 0.01, 100),
    ("sd15", "box_inpaint", "C", 50, 10.0, 0.1, 2, 58, 1.11e-6, 0.43, 0.92, 0.01, 100),
    ("sd15", "freeform_inpaint", "D", 50, 10.0, 0.1, 2, 58, 1.11e-6, 0.43, 0.92, 0.01, 100),
    *(("sd15", task, "D", 50, 10.0, 0.1, 2, 40, 1e-5, 1.0, 0.9, 0.01, 100) for task in (None, "denoise")),
    ("ldm-ffhq", "gaussian_blur", "C", 50, 10.0, 0.1, 2, 35, 2.7e-6, 0.95, 0.95, 0.01, 100),
    ("ldm-ffhq", "sr4", "C", 50, 10.0, 0.1, 2, 24, 1.35e-4, 0.023, 0.86, 0.01, 100),
    ("ldm-ffhq", "sr8", "D", 50, 10.0, 0.1, 2, 24, 1.35e-4, 0.023, 0.86, 0.01, 100),
    ("ldm-ffhq", "motion_blur", "C", 50, 10.0, 0.1, 2, 49, 2.4e-5, 0.041, 0.45, 0.01, 100),
    ("ldm-ffhq", "random_inpaint", "C", 50, 10.0, 0.1, 2, 38, 8.4e-6, 0.013, 0.92, 0.01, 100),
    ("ldm-ffhq", "box_inpaint", "C", 50, 10.0, 0.1, 2, 15, 9.02e-6, 0.13, 0.74, 0.01, 100),
    ("ldm-ffhq", "freeform_inpaint", "D", 50, 10.0, 0.1, 2, 15, 9.02e-6, 0.13, 0.74, 0.01, 100),
    *(("ldm-ffhq", task, "D", 50, 10.0, 0.1, 2, 35, 2.7e-6, 0.95, 0.95, 0.01, 100) for task in (None, "denoise")),
    # Half the levels and a handful of steps each, with the lengths of the row above that has the same task.
    ("fast", "gaussian_blur", "D", 25, 10.0, 0.1, 2, 10, 2.7e-6, 0.95, 0.95, 0.01, 50),
    *(("fast", task, "D", 25, 10.0, 0.1, 2, 10, 1.35e-4, 0.023, 0.86, 0.01, 50) for task in ("sr4", "sr8")),
    ("fast", "motion_blur", "D", 25, 10.0, 0.1, 2, 10, 2.4e-5, 0.041, 0.45, 0.01, 50),
    ("fast", "random_inpaint", "D", 25, 10.0, 0.1, 2, 10, 8.4e-6, 0.013, 0.92, 0.01, 50),
    ("fast", "box_inpaint", "D", 25, 10.0, 0.1, 2, 10, 9.02e-6, 0.13, 0.74, 0.01, 50),
    ("fast", "freeform_inpaint", "D", 25, 10.0, 0.1, 2, 10, 9.02e-6, 0.13, 0.74, 0.01, 50),
]

TABLES = {
    P2L: (P2L_FIELDS, P2L_TABLE),
    LDIR: (LDIR_FIELDS, LDIR_TABLE),
    ReSample: (RESAMPLE_FIELDS, RESAMPLE_TABLE),
    LatentDAPS: (DAPS_FIELDS, DAPS_TABLE),
}


@pytest.mark.parametrize(
    ("method", "fields", "row"),
    [
        pytest.param(method, fields, row, id=f"{method.__name__}-{row[0]}-{row[1]}")
        for method, (fields, rows) in TABLES.items()
        for row in rows
    ],
)
def test_a_preset_is_its_row(method, fields, row):
    name, task, _, *values, evaluations = row
    sampler = method() if name is None else method.preset(name, task)
    assert sampler.settings() == dict(zip(fields, values, strict=True))
    assert sampler.nfe == evaluations


@pytest.mark.parametrize("method", TABLES, ids=lambda method: method.__name__)
def test_every_preset_stands_in_the_table(method):
    _, rows = TABLES[method]
    assert set(method.presets) == {name for name, *_ in rows} - {None}


@pytest.mark.parametrize("method", TABLES, ids=lambda method: method.__name__)
def test_fast_has_at_most_60_steps_and_evaluations_for_every_task(method):
    for task in (None, "sr4", "sr8", *INPAINTING, *OTHERS):
        fast = method.preset("fast", task)
        assert fast.steps <= 60
        assert fast.nfe <= 60
