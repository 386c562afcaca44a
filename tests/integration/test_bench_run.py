"""A benchmark from the first picture to the last: measured once, resumed, never stopped by one bad unit."""

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image as Picture

from models import pixel_folder
from stsl.bench import drive, engine
from stsl.bench.data import find_pictures
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.engine import Local
from stsl.bench.faces import builtin_faces
from stsl.bench.identity import PriorChoice
from stsl.bench.scores import psnr_uint8_wrap, score_missing
from stsl.bench.store import Store
from stsl.bench.suite import Data, Suite
from stsl.bench.ways import Restored
from stsl.bench.work import Restoring
from stsl.cli import main
from stsl.samplers import DMPS

SUITE = {
    "name": "tiny",
    "title": "A tiny table",
    "source": "nowhere",
    "data": {"layout": "faces", "images": 5},
    "blocks": {"pixel": {"side": 64}},
    "tasks": {
        "gaussian_blur": {"spec": "gaussian_blur", "noise": 0.01},
        "random_inpaint": {"spec": "random_inpaint", "noise": 0.01},
        "motion_blur": {"spec": "motion_blur", "noise": 0.01},
    },
    "methods": [
        {"name": "DMPS", "sampler": "dmps", "block": "pixel", "set": {"steps": 2}, "published": "DMPS"},
        {"name": "TV", "sampler": "admm_tv", "block": "pixel", "set": {"steps": 2, "inner_steps": 2}},
        {"name": "TV again", "sampler": "admm_tv", "block": "pixel", "set": {"steps": 2, "inner_steps": 2}},
    ],
    "reference": "DMPS",
    "published": {"file": "stsl_table1_inversion.csv", "tables": ["1"], "comparable": False},
}
UNITS = 5 * 3 * 3


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    return pixel_folder(tmp_path_factory.mktemp("prior") / "pixels", size=64)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draws = torch.Generator().manual_seed(0)
    for name in "abcde":
        noise = torch.randint(0, 256, (8, 8, 3), generator=draws, dtype=torch.uint8).numpy()
        Picture.fromarray(noise).resize((72, 64), Picture.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def photos(tmp_path, pristine) -> Path:
    """Pictures that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "photos"))


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, prior, pristine):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished")
    done = go(out, plan(prior, pristine))
    torch.set_num_threads(before)
    return out, done


@pytest.fixture
def finished(tmp_path, finished_once) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished_once[0], tmp_path / "out"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Batches of equal pictures give equal bits on one thread."""


def plan(prior, photos, suite=None, **options):
    table = Suite.model_validate(suite or SUITE)
    blocks, left_out = choose_blocks(table, {"pixel": str(prior)}, "cpu", "fp32", True)
    assert not left_out
    pictures = find_pictures(photos, Data(layout="faces", images=5))
    return Plan(table, blocks, pictures, batch=2, threads=1, **options)


def go(out, planned):
    with Store(out, create=True) as store:
        return list(Driver(store, planned).run(Local()))


def rows(out, query="select * from units order by key"):
    with Store(out) as store:
        return [dict(row) for row in store.all(query)]


def results(out):
    """What a result is, without when it came about: settings, measurement, and the picture's bytes."""
    kept = ("key", "status", "measurement", "settings", "seed", "image", "task", "sampler", "residual", "unet_samples")
    return [
        {name: row[name] for name in kept} | {"png": (out / row["png"]).read_bytes() if row["png"] else None}
        for row in rows(out)
    ]


def test_every_unit_is_restored_and_equal_settings_are_one_unit(finished_once):
    out, done = finished_once
    found = rows(out)
    assert len(done) == len(found) == UNITS * 2 // 3  # "TV" and "TV again" are one
    assert all(row["status"] == "done" and row["error"] is None for row in found)
    assert len(rows(out, "select * from members")) == UNITS
    assert {row["side"] for row in found} == {64}
    assert {row["unet_samples"] for row in found if row["sampler"] == "DMPS"} == {2}
    assert {row["unet_samples"] for row in found if row["sampler"] == "ADMMTV"} == {0}


def test_every_method_of_a_side_is_given_the_same_measurement(finished):
    by_picture: dict[tuple[str, str], set[str]] = {}
    for row in rows(finished):
        by_picture.setdefault((row["image"], row["task"]), set()).add(row["measurement"])
    assert len(by_picture) == 15
    assert all(len(hashes) == 1 for hashes in by_picture.values())
    assert len(set.union(*by_picture.values())) == 15
    for (image, task), (sha256,) in by_picture.items():  # the hash is that of the files, as anybody would take it
        folder = finished / "measurements" / "64" / f"{task}-seed0"
        files = (folder / f"{image}.safetensors", folder / f"{image}_operator.safetensors")
        assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == sha256


def test_a_second_run_does_nothing_again(finished, prior, pristine):
    before = rows(finished)
    assert go(finished, plan(prior, pristine)) == []
    assert rows(finished) == before


def test_a_lost_picture_is_made_again(finished, prior, pristine):
    (finished / rows(finished)[0]["png"]).unlink()
    ((unit, error),) = go(finished, plan(prior, pristine))
    assert error is None
    after = rows(finished)[0]
    assert (after["key"], after["attempts"]) == (unit.key, 2)
    assert (finished / after["png"]).is_file()


def test_other_code_is_run_again_only_when_asked(finished, prior, pristine, monkeypatch):
    monkeypatch.setattr(drive, "code_version", lambda: "another")
    assert go(finished, plan(prior, pristine)) == []
    assert len(go(finished, plan(prior, pristine, rerun_changed=True))) == UNITS * 2 // 3
    assert {row["code"] for row in rows(finished)} == {"another"}


def test_a_corrupt_picture_is_recorded_and_the_others_go_on(tmp_path, prior, photos):
    (photos / "c.png").write_bytes((photos / "c.png").read_bytes()[:60])
    go(tmp_path / "out", plan(prior, photos))
    failed = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert {row["image"] for row in failed} == {"c"}
    assert len(failed) == 9
    assert all("c.png" in row["error"] for row in failed)
    assert sum(row["status"] == "done" for row in rows(tmp_path / "out")) == 4 * 3 * 2


def test_a_method_that_raises_or_diverges_fails_alone(tmp_path, prior, photos, monkeypatch):
    whole = DMPS.step

    def step(self, problem, state, t, t_next, rng):
        if "b" in rng.ids:
            raise KeyError("a fault of the method")
        done = whole(self, problem, state, t, t_next, rng)
        if "d" in rng.ids:
            done.z[rng.ids.index("d")] = float("nan")
        return done

    monkeypatch.setattr(DMPS, "step", step)
    go(tmp_path / "out", plan(prior, photos))
    failed = {(row["image"], row["error"].partition(":")[0]) for row in rows(tmp_path / "out") if row["error"]}
    assert failed == {("b", "KeyError"), ("d", "Diverged")}
    assert sum(row["status"] == "failed" for row in rows(tmp_path / "out")) == 6
    monkeypatch.setattr(DMPS, "step", whole)
    assert len(go(tmp_path / "out", plan(prior, photos))) == 6  # what failed is tried again
    assert {row["status"] for row in rows(tmp_path / "out")} == {"done"}


def test_a_picture_that_cannot_be_written_is_recorded(tmp_path, prior, photos):
    blocked = tmp_path / "out" / "restored" / "pixel" / "gaussian_blur"
    blocked.mkdir(parents=True)
    (blocked / "TV").write_text("in the way")
    go(tmp_path / "out", plan(prior, photos))
    failed = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert {(row["task"], row["sampler"]) for row in failed} == {("gaussian_blur", "ADMMTV")}
    assert all("could not be written" in row["error"] for row in failed)


def test_a_measurement_that_was_changed_is_not_used(finished, prior, pristine):
    changed = finished / "measurements" / "64" / "gaussian_blur-seed0" / "a.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with Store(finished) as store:
        store.db.execute("update units set status = 'failed' where image = 'a' and task = 'gaussian_blur'")
    again = go(finished, plan(prior, pristine))
    assert {error for _, error in again if error and "is not the measurement that was made" not in error} == set()
    assert {(unit.measured.image, unit.task) for unit, error in again if error} == {("a", "gaussian_blur")}


def test_another_picture_of_the_same_name_is_refused(finished, prior, photos):
    done = go(finished, plan(prior, photos))
    assert len(done) == UNITS
    assert all("give another --out" in error for _, error in done)


def test_data_that_are_refused_leave_the_finished_table_as_it_is(finished, prior, photos):
    before = rows(finished, "select * from members")
    assert all(error for _, error in go(finished, plan(prior, photos)))
    assert rows(finished, "select * from members") == before


def test_a_task_that_is_another_corruption_is_refused_before_anything_is_done(finished, prior, pristine):
    before = rows(finished)
    tasks = SUITE["tasks"] | {"motion_blur": {"spec": "motion_blur", "noise": 0.02}}
    other = plan(prior, pristine, SUITE | {"name": "other", "tasks": tasks})
    with pytest.raises(ValueError, match=r"motion_blur with noise 0\.01 in .*noise 0\.02 here: give another --out"):
        go(finished, other)
    assert rows(finished) == before
    assert {row["suite"] for row in rows(finished, "select * from members")} == {"tiny"}


def test_results_that_are_no_database_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "results.sqlite").write_text("this is no database, but a text that is longer than its header" * 9)
    assert main(["bench", "report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "results.sqlite: file is not a database" in said
    with pytest.raises(OSError, match="may be written"):
        Store(tmp_path, create=True)


COMMAND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.data import find_pictures
from stsl.bench.engine import Local
from stsl.bench.store import Store
from stsl.bench.suite import Data, load_suite
table = load_suite(Path(sys.argv[2]))
blocks, _ = choose_blocks(table, {"pixel": sys.argv[3]}, "cpu", "fp32", True)
pictures = find_pictures(Path(sys.argv[4]), Data(layout="faces", images=5))
with Store(Path(sys.argv[5]), create=True) as store:
    for unit, error in Driver(store, Plan(table, blocks, pictures, batch=2, threads=1)).run(Local()):
        print(unit.key, flush=True)
"""


def test_killed_at_any_moment_and_resumed_equals_an_unbroken_run(tmp_path, finished, prior, photos):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    arguments = [sys.executable, "-c", COMMAND, ".", str(suite), str(prior), str(photos), str(tmp_path / "killed")]
    run = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.stdout is not None
    for _ in range(5):  # in the middle of the work, at no tidy place
        run.stdout.readline()
    time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = sum(row["status"] == "done" for row in rows(tmp_path / "killed"))
    assert 0 < done < UNITS * 2 // 3
    again = go(tmp_path / "killed", plan(prior, photos))
    assert len(again) == UNITS * 2 // 3 - done  # nothing twice
    assert results(tmp_path / "killed") == results(finished)
    assert rows(tmp_path / "killed", "select * from members") == rows(finished, "select * from members")


def test_scores_come_from_the_saved_files(finished):
    import numpy as np
    from skimage.metrics import peak_signal_noise_ratio

    out = finished
    with Store(out) as store:
        assert sum(score_missing(store)) == UNITS * 2 // 3
        assert list(score_missing(store)) == []
    for row in rows(out):
        restored, truth = (
            np.asarray(Picture.open(file)) for file in (out / row["png"], out / "truth" / "64" / f"{row['image']}.png")
        )
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, restored), abs=1e-4)  # float32


def test_wrapped_squares_put_unrelated_pictures_where_the_papers_psnr_lies():
    draws = torch.Generator().manual_seed(0)
    x, truth = torch.rand(2, 1, 3, 256, 256, generator=draws)
    # The squares of a uniform 8-bit difference modulo 256 have the mean 105.5: 10 log10(255² / 105.5).
    mean = sum(d * d % 256 for d in range(256)) / 256
    expected = 10 * torch.tensor(255**2 / mean).log10()
    assert abs(psnr_uint8_wrap(x, truth) - expected) < 0.05  # the share of each difference is not quite uniform
    assert psnr_uint8_wrap(truth + 10 / 255, truth.clamp(0, 0.9)).shape == (1,)


def test_rows_are_exported_with_their_settings(tmp_path, finished):
    import pyarrow.parquet as parquet

    out = finished
    assert main(["bench", "export", str(out), "--to", str(tmp_path / "rows.csv")]) == 0
    assert main(["bench", "export", str(out), "--to", str(tmp_path / "rows.parquet")]) == 0
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(table) == UNITS
    assert {row["method"] for row in table} == {"DMPS", "TV", "TV again"}
    assert json.loads(table[0]["settings"])["steps"] == 2
    assert table[0]["tag"] == "colour"
    assert (tmp_path / "rows.csv").read_text().count("\n") == UNITS + 1
    assert main(["bench", "export", str(out), "--to", str(tmp_path / "none.csv"), "--suite", "tyni"]) == 2
    assert not (tmp_path / "none.csv").exists()


def command(*arguments):
    return main(["bench", "run", *map(str, arguments), "--device", "cpu", "--precision", "fp32", "--offline"])


def test_the_command_runs_resumes_and_says_what_is_left(tmp_path, prior, photos, capsys):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    given = (suite, "--data", photos, "--out", tmp_path / "out", "--prior", f"pixel={prior}", "--json")
    assert command(*given, "--limit", 2, "--tasks", "gaussian_blur") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["units"], said["failed"]) == (6, 0)
    assert {row["n"] for row in said["rows"]} == {2}
    assert command(*given, "--plan") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["units"], planned["left"], planned["unmeasured"]) == (UNITS, UNITS - 6, None)
    assert planned["hours_of_one_worker"] >= 0
    assert not (tmp_path / "out" / "restored" / "pixel" / "motion_blur").exists()


def test_a_block_without_its_prior_is_left_out_and_named(tmp_path, photos, capsys):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    assert command(suite, "--data", photos, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "block pixel is left out" in said
    assert "--prior pixel=FOLDER" in said


def test_a_published_suite_without_data_says_what_to_place(tmp_path, prior, capsys):
    given = ("stsl-table5", "--prior", f"pixel={prior}", "--methods", "dps", "--out", tmp_path / "out")
    assert command(*given) == 2
    assert "ctest10k.txt" in capsys.readouterr().err


def test_the_database_is_readable_while_a_run_goes_on(tmp_path, prior, photos):
    with Store(tmp_path / "out", create=True) as store:
        run = Driver(store, plan(prior, photos)).run(Local())
        next(run)
        reader = sqlite3.connect(tmp_path / "out" / "results.sqlite")
        assert reader.execute("pragma journal_mode").fetchone() == ("wal",)
        assert reader.execute("select count(*) from units").fetchone()[0] >= 1
        reader.close()
        list(run)


def test_ray_that_is_not_installed_is_missed_before_anything_else(monkeypatch, capsys, tmp_path):
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else whole(name, *more))
    assert command("mini-table1", "--limit", 1, "--engine", "ray", "--plan", "--out", tmp_path / "out") == 2
    assert 'pip install "stsl[bench]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_worker_keeps_its_prior(prior):
    worker, choice = Restoring(1)(), PriorChoice(str(prior), "cpu", "fp32", True)
    again, other = PriorChoice(str(prior), "cpu", "fp32", True), Restored(DMPS(steps=7))
    assert worker.networks(Restored(DMPS()), choice) is worker.networks(other, again)


def test_suites_are_listed(capsys):
    assert main(["bench", "list", "--json"]) == 0
    rows = {row["suite"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["stsl-table5"]["images"] == 1000
    assert "STSL-V" in rows["stsl-table5"]["methods"]


def test_without_data_the_astronaut_and_samples_of_the_prior_are_taken(prior):
    choice = PriorChoice(str(prior), "cpu", "fp32", True)
    astronaut, first, second = builtin_faces(choice, 3)
    assert astronaut.id == "astronaut"
    assert torch.equal(first.load().x, builtin_faces(choice, 2)[1].load().x)  # however many there are
    assert not torch.equal(first.load().x, second.load().x)


def test_a_report_is_written_from_what_was_run(tmp_path, prior, photos, capsys):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    given = (suite, "--data", photos, "--out", tmp_path / "out", "--prior", f"pixel={prior}")
    assert command(*given, "--limit", 1, "--tasks", "gaussian_blur", "--methods", "dmps") == 0
    suite.unlink()
    assert main(["bench", "report", str(tmp_path / "out"), "--no-distances"]) == 0
    assert "DMPS" in (tmp_path / "out" / "report" / "tiny.html").read_text(encoding="utf-8")
    assert main(["bench", "report", str(tmp_path / "out"), "--suite", "mini-table1"]) == 2
    assert "nothing of 'mini-table1'" in capsys.readouterr().err


def test_a_table_that_has_no_units_yet_is_in_no_report(tmp_path, capsys):
    suite = Suite.model_validate(SUITE)
    with Store(tmp_path / "out", create=True) as store:
        store.put("suites", {"name": suite.name, "content": suite.model_dump_json()})
    assert main(["bench", "report", str(tmp_path / "out")]) == 2
    assert "has no units yet" in capsys.readouterr().err


@pytest.mark.parametrize("given", [("--precision", "fp17"), ("--device", "abacus")])
def test_what_no_unit_could_be_run_with_is_refused_at_once(given, tmp_path, photos, capsys):
    assert main(["bench", "run", "mini-table1", "--data", str(photos), "--out", str(tmp_path / "out"), *given]) == 2
    assert f"{given[1]!r} is not known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_restored_through_an_engine(tmp_path, prior, photos, capsys, monkeypatch):
    monkeypatch.setattr(engine, "engine_named", lambda name, address: Local())
    (photos / "c.png").write_bytes((photos / "c.png").read_bytes()[:60])
    given = ["restore", photos, "--task", "gaussian_blur", "--sampler", "dmps", "--set", "steps=2", "--prior", prior]
    given += ["--resize", "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "out", "--batch", "2"]
    assert main([*map(str, given), "--engine", "ray", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["input"]).name for row in rows] == [f"{name}.png" for name in "abcde"]
    assert [row["output"] is None for row in rows] == [False, False, True, False, False]
    assert main([*map(str, given), "--json"]) == 1
    here = json.loads(capsys.readouterr().out)
    there, near = ([row["residual_rms"] for row in found if row["output"]] for found in (rows, here))
    assert there == pytest.approx(near, rel=1e-5)  # other batches, other roundings of float32
    assert main([*map(str, given), "--engine", "ray", "--resume", "--json"]) == 1
    assert [Path(row["input"]).name for row in json.loads(capsys.readouterr().out)] == ["c.png"]
    assert main([*map(str, given), "--engine", "ray", "--on-error", "stop"]) == 2
