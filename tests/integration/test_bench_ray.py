"""Work on Ray is the work done here, to the bit: a benchmark, and a folder of photos."""

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from models import pixel_folder, sd15_folder
from stsl import images
from stsl.bench.data import find_pictures
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.engine import Local, engine_named
from stsl.bench.folder import Restoration, restore_folder
from stsl.bench.ray import LOOPBACK, OnRay
from stsl.bench.store import Store
from stsl.bench.suite import Data, Suite
from stsl.photos import Corruption
from stsl.samplers import DMPS

# Not imported here: Ray must be told to stay on this machine before it is.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

SUITE = {
    "name": "tiny",
    "title": "A tiny table",
    "source": "nowhere",
    "data": {"layout": "faces", "images": 4},
    "edit": {"source": "a photo", "target": "a face"},
    "blocks": {"pixel": {"side": 64}, "latent": {"side": 64}},
    "tasks": {"motion_blur": {"spec": "motion_blur", "noise": 0.01}},
    "methods": [
        {"name": "DMPS", "sampler": "dmps", "block": "pixel", "set": {"steps": 2}},
        {"name": "TV", "sampler": "admm_tv", "block": "pixel", "set": {"steps": 2, "inner_steps": 2}},
        {"name": "NTI", "editor": "nti", "block": "latent", "set": {"steps": 2, "null_steps": 1}},
    ],
    "reference": "DMPS",
    "published": {"file": "stsl_table1_inversion.csv", "tables": ["1"], "comparable": False},
}


def listeners() -> set[tuple[str, int]]:
    """Addresses and ports that anything on this machine listens on."""
    return {(c.laddr.ip, c.laddr.port) for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


class Doubler:
    """A worker that counts its jobs, refuses one of them, and dies of another the first time."""

    def __init__(self, died: Path) -> None:
        self.count, self.died = 0, died

    def __call__(self, job: int) -> tuple[int, int]:
        if job == 3:
            raise KeyError("three")
        if job == 0 and not self.died.exists():
            self.died.touch()
            os._exit(1)
        self.count += 1
        return 2 * job, self.count


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    return pixel_folder(tmp_path_factory.mktemp("prior") / "pixels", size=64)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    draws = torch.Generator().manual_seed(0)
    paths = [tmp_path / "photos" / f"{name}.png" for name in "abcd"]
    for path in paths:
        images.write(path, torch.rand(1, 3, 64, 64, generator=draws))
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    return paths


def restoration(prior, **options):
    loading = {"name": str(prior), "device": "cpu", "precision": "fp32", "offline": True}
    return Restoration(loading, DMPS(steps=2), Corruption(task="gaussian_blur"), {"batch": 2}, threads=1, **options)


def pairs(photos, out):
    return [(photo, out / photo.name) for photo in photos]


@pytest.fixture(scope="module")
def engine() -> OnRay:
    """One worker."""
    return OnRay(workers=1)


def test_a_dead_worker_comes_back_and_nothing_listens_beyond_this_machine(engine, tmp_path, monkeypatch):
    for key, value in LOOPBACK.items():  # what the engine would do; here Ray is imported before it
        monkeypatch.setenv(key, value)
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker's process has no tests
    before, done = listeners(), {}
    for job, result in engine.run(partial(Doubler, tmp_path / "died"), range(6)):
        done[job] = result
        new = listeners() - before
    assert isinstance(done.pop(3), KeyError)
    assert {job: twice for job, (twice, _) in done.items()} == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    assert max(count for _, count in done.values()) == 5  # one worker, which stayed once it was back
    assert (tmp_path / "died").exists()
    assert new
    assert {address for address, _ in new} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_benchmark_on_ray_equals_a_local_one(engine, tmp_path, prior, photos, one_thread):
    table = Suite.model_validate(SUITE)
    latent = sd15_folder(tmp_path / "latent", size=64)
    blocks, _ = choose_blocks(table, {"pixel": str(prior), "latent": str(latent)}, "cpu", "fp32", True)
    pictures = find_pictures(photos[0].parent, Data(layout="faces", images=4))
    found = {}
    for name, where in (("local", Local()), ("ray", engine)):
        out = tmp_path / name
        with Store(out, create=True) as store:
            list(Driver(store, Plan(table, blocks, pictures, batch=2, threads=1)).run(where))
            rows = [
                dict(row) for row in store.all("select key, status, measurement, png, residual from units order by 1")
            ]
        found[name] = [row | {"png": row["png"] and (out / row["png"]).read_bytes()} for row in rows]
    assert found["local"] == found["ray"]
    assert [row["status"] for row in found["ray"]].count("done") == 9
    assert [row["status"] for row in found["ray"]].count("failed") == 3  # the picture that is cut short


def test_a_folder_of_photos_on_ray_equals_a_local_one(engine, tmp_path, prior, photos, one_thread):
    local = list(restore_folder(Local(), restoration(prior), pairs(photos, tmp_path / "local"), 2))
    there = list(restore_folder(engine, restoration(prior), pairs(photos, tmp_path / "ray"), 2))
    for rows in (local, there):
        failed = [row for row in rows if row["output"] is None]
        assert [Path(row["input"]).name for row in failed] == ["c.png"]
    for name in ("a.png", "b.png", "d.png"):
        assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
        keys = [json.loads((tmp_path / at / f"{name}.json").read_text())["key"] for at in ("local", "ray")]
        assert keys[0] == keys[1]
    again = list(restore_folder(Local(), restoration(prior, resume=True), pairs(photos, tmp_path / "ray"), 2))
    assert {Path(row["input"]).name for row in again if row.get("done_already")} == {"a.png", "b.png", "d.png"}


def test_an_engine_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="give local or ray"):
        engine_named("spark")
    with pytest.raises(ValueError, match="is for --engine ray"):
        engine_named("local", "auto")


def test_code_of_ones_own_stays_here(prior, photos, tmp_path):
    own = Restoration({}, DMPS(steps=2), Corruption(function=(lambda shape: None, "own.py:make")), {})
    with pytest.raises(TypeError, match="--engine local only"):
        list(restore_folder(Local(), own, pairs(photos, tmp_path), 1))
