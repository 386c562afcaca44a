"""What the report says is what the files say."""

import csv
import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models import pixel_folder
from stsl.bench.compare import compare
from stsl.bench.data import find_pictures
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.engine import Local
from stsl.bench.report import write_report
from stsl.bench.scores import score_missing
from stsl.bench.store import Store
from stsl.bench.suite import Data, Suite

SUITE = {
    "name": "tiny",
    "title": "A tiny <table>",
    "source": "nowhere",
    "data": {"layout": "faces", "images": 4},
    "blocks": {"pixel": {"side": 64}, "other": {"side": 64}},
    "tasks": {"gaussian_blur": {"spec": "gaussian_blur", "noise": 0.01}},
    "methods": [
        {"name": "DMPS", "sampler": "dmps", "block": "pixel", "set": {"steps": 2}, "published": "DPS"},
        {"name": "DiffPIR & more", "sampler": "diffpir", "block": "pixel", "set": {"steps": 3}},
        {"name": "TV", "sampler": "admm_tv", "block": "other", "set": {"steps": 4, "inner_steps": 5}},
    ],
    "reference": "DMPS",
    "published": {"file": "stsl_table1_inversion.csv", "tables": ["1"], "dataset": "FFHQ-1K", "comparable": False},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Suite]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("report")
    prior = pixel_folder(base / "pixels", size=64)
    draws = torch.Generator().manual_seed(0)
    (base / "photos").mkdir()
    for name in "abcd":
        noise = torch.randint(0, 256, (8, 8, 3), generator=draws, dtype=torch.uint8).numpy()
        Picture.fromarray(noise).resize((64, 64), Picture.Resampling.BICUBIC).save(base / "photos" / f"{name}.png")
    suite = Suite.model_validate(SUITE)
    blocks, _ = choose_blocks(suite, {"pixel": str(prior), "other": str(prior)}, "cpu", "fp32", True)
    pictures = find_pictures(base / "photos", Data(layout="faces", images=4))
    with Store(base / "out", create=True) as store:
        done = list(Driver(store, Plan(suite, blocks, pictures, batch=2, threads=1)).run(Local()))
        assert all(error is None for _, error in done)
        list(score_missing(store))
        write_report(store, suite)
    torch.set_num_threads(before)
    return base / "out", suite


def table(out):
    with (out / "report" / "tiny.csv").open(encoding="utf-8", newline="") as file:
        return {(row["method"], row["metric"]): row for row in csv.DictReader(file)}


def test_the_reports_means_are_those_of_the_pictures(finished):
    out, _ = finished
    scored = table(out)
    for block, method in (("pixel", "DMPS"), ("pixel", "DiffPIR & more"), ("other", "TV")):
        psnr, ssim = [], []
        for path in sorted((out / "restored" / block / "gaussian_blur" / method).glob("*.png")):
            x = np.asarray(Picture.open(path)) / 255
            truth = np.asarray(Picture.open(out / "truth" / "64" / f"{path.name.partition('-')[0]}.png")) / 255
            psnr.append(peak_signal_noise_ratio(truth, x, data_range=1.0))
            settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
            ssim.append(structural_similarity(truth, x, channel_axis=2, **settings))
        assert len(psnr) == 4
        assert float(scored[method, "psnr"]["mean"]) == pytest.approx(np.mean(psnr), abs=1e-4)  # float32
        assert float(scored[method, "ssim"]["mean"]) == pytest.approx(np.mean(ssim), abs=1e-4)
        assert min(psnr) <= float(scored[method, "psnr"]["low"]) <= np.mean(psnr)
        assert np.mean(psnr) <= float(scored[method, "psnr"]["high"]) <= max(psnr)


def test_only_methods_of_one_block_are_ranked_together(finished):
    scored = table(finished[0])
    assert {scored[method, "psnr"]["rank"] for method in ("DMPS", "DiffPIR & more")} == {"1", "2"}
    assert scored["TV", "psnr"]["rank"] == ""
    text = (finished[0] / "report" / "tiny.md").read_text(encoding="utf-8")
    assert "DiffPIR & more, gaussian_blur | psnr | 4" in text  # paired with the reference
    assert "TV, gaussian_blur | psnr" not in text


def test_published_figures_stand_beside_ours(finished):
    scored = table(finished[0])
    assert float(scored["DMPS", "ssim"]["published"]) < 1
    assert scored["DMPS", "ssim"]["evidence"] == "paper"
    assert scored["TV", "ssim"]["published"] == ""
    page = (finished[0] / "report" / "tiny.html").read_text(encoding="utf-8")
    assert "paper 0." in page
    assert "nobody has confirmed" in page  # beside the published PSNR


class Tags(html.parser.HTMLParser):
    """Tags that are open, and everything that the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "circle", "path"):
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_other_file(finished):
    page = (finished[0] / "report" / "tiny.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.references
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in tags.references)
    assert "A tiny &lt;table&gt;" in page
    assert "<script" not in page


def test_the_tables_are_latex_too(finished):
    text = (finished[0] / "report" / "tiny.tex").read_text(encoding="utf-8")
    assert r"DiffPIR \& more" in text
    assert r"\textbf{" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 3
    for tabular in re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S):
        rows = [row for row in tabular.split(r"\\") if "&" in row]
        assert len({row.replace(r"\&", "").count("&") for row in rows}) == 1


def test_a_folder_compared_with_itself_differs_nowhere(finished):
    with Store(finished[0]) as first, Store(finished[0]) as second:
        rows = compare(first, second)
    assert {row["n"] for row in rows} == {4}
    assert {row["difference"] for row in rows} == {0.0}
    assert {row["p"] for row in rows} == {1.0}
    assert json.dumps(rows)


def test_the_report_is_displayed_by_a_browser(finished):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as browsers:
        try:
            browser = browsers.chromium.launch(executable_path=shutil.which("chromium"))
        except playwright.Error:
            pytest.skip("Chromium is not installed")
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto((finished[0] / "report" / "tiny.html").as_uri())
        assert page.get_by_role("heading", name="A tiny <table>").is_visible()
        assert page.get_by_role("cell", name="DMPS, gaussian_blur").first.is_visible()
        assert page.get_by_role("img").first.is_visible()
        assert wrong == []
        browser.close()
