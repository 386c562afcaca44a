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
from stsl.bench.cells import load_cells
from stsl.bench.compare import compare
from stsl.bench.data import find_pictures
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.engine import Local
from stsl.bench.report import _costs, write_report
from stsl.bench.scores import score_missing
from stsl.bench.store import Store
from stsl.bench.suite import Corruption, Data, Published, Suite

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


def test_two_folders_are_compared_on_the_pictures_that_are_scored_in_both(finished, tmp_path):
    other = Path(shutil.copytree(finished[0], tmp_path / "other"))
    with Store(finished[0]) as first, Store(other) as second:
        second.db.execute("update units set psnr = null where image = 'a'")  # killed before it was scored
        second.db.execute("update units set psnr = psnr - 1 where sampler = 'DMPS'")
        found = {row["metric"]: row for row in compare(first, second) if row["method"] == "DMPS"}
    assert (found["psnr"]["n"], found["ssim"]["n"]) == (3, 4)
    assert found["psnr"]["difference"] == pytest.approx(1.0)
    assert found["psnr"]["wins"] == 1.0


def test_distances_of_sets_have_their_network_and_n_in_their_names(finished, tmp_path, monkeypatch):
    out = Path(shutil.copytree(finished[0], tmp_path / "out"))
    monkeypatch.setattr("stsl.bench.scores.backbone", lambda: ("corner", lambda x: x[:, :, 0, 0].double()))
    with Store(out) as store:
        write_report(store, finished[1], pictures=False)
    corners = [
        np.array([np.asarray(Picture.open(path))[0, 0] / 255 for path in sorted(folder.glob("*.png"))])
        for folder in (out / "restored" / "pixel" / "gaussian_blur" / "DMPS", out / "truth" / "64")
    ]
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in corners)
    cross = np.sqrt(np.linalg.eigvals(c @ d).astype(complex)).real.sum()
    row = table(out)["DMPS", "fid_corner_n4"]
    assert float(row["mean"]) == pytest.approx(((m - n) ** 2).sum() + np.trace(c + d) - 2 * cross, abs=1e-6)
    assert (row["n"], row["low"], row["rank"]) == ("4", "", "")
    assert ("DMPS", "kid_corner_n4") in table(out)
    with Store(out) as store:  # a unit is done again, with another picture
        again = store.one("select * from units where sampler = 'DMPS' and image = 'a'")
        Picture.new("RGB", (64, 64), (255, 255, 255)).save(out / again["png"])
        store.finish({name: again[name] for name in again.keys()})  # noqa: SIM118 (a row of SQLite is no dict)
        write_report(store, finished[1], pictures=False)
    assert float(table(out)["DMPS", "fid_corner_n4"]["mean"]) != float(row["mean"])


def test_what_an_earlier_run_had_is_not_said_to_be_missing(finished, tmp_path):
    out, suite = Path(shutil.copytree(finished[0], tmp_path / "out")), finished[1]
    left_out = json.dumps({"fast": False, "left_out": {"other": "no prior", "SD-Inpaint": "no weights"}})
    with Store(out) as store:
        store.put("runs", {"suite": "tiny", "started": "9999", "settings": left_out})
        write_report(store, suite, pictures=False, distances=False)
    text = (out / "report" / "tiny.md").read_text(encoding="utf-8")
    assert "SD-Inpaint was not run: no weights" in text
    assert "other was not run" not in text


def test_only_samples_of_a_prior_are_called_biased(finished, tmp_path):
    out, suite = Path(shutil.copytree(finished[0], tmp_path / "out")), finished[1]
    said = []
    for known in (("a", "sample-photos/a.png"), ("sample-01", "sample-01 of faces-128")):
        with Store(out) as store:
            store.db.execute("update pictures set id = ?, source = ? where id in ('a', 'sample-01')", known)
            store.db.execute("update members set image = ? where image in ('a', 'sample-01')", known[:1])
            write_report(store, suite, pictures=False, distances=False)
        said.append("unconditional samples" in (out / "report" / "tiny.md").read_text(encoding="utf-8"))
    assert said == [False, True]


def test_the_published_cost_stands_beside_ours_under_the_papers_name_of_the_task(finished):
    out, suite = finished
    published = {"file": "stsl_table2_runtime_nfe.csv", "tables": ("2-left",), "comparable": False}
    named = {"gaussian_blur": {"spec": "gaussian_blur", "noise": 0.01, "published": "sr8"}}
    changed = suite.model_copy(
        update={"published": Published(**published), "tasks": {k: Corruption(**v) for k, v in named.items()}}
    )
    (costs,) = (piece for piece in _costs(changed, "pixel", _loaded(out)))
    (row,) = (row for row in costs.rows if row[0].text == "DMPS, gaussian_blur")
    assert row[1].remark == "paper 1000"


def _loaded(out):
    with Store(out) as store:
        return load_cells(store, "tiny")


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
