"""Score two methods on one picture with the benchmark's own parts; run it again, and nothing is done twice."""

import sys
from pathlib import Path

from stsl import images
from stsl.bench.drive import Driver, Plan, choose_blocks
from stsl.bench.engine import Local
from stsl.bench.faces import builtin_faces
from stsl.bench.scores import score_missing
from stsl.bench.store import Store
from stsl.bench.suite import load_suite
from stsl.result import write_json

out = Path(sys.argv[1] if len(sys.argv) > 1 else "bench")
suite = load_suite("mini-table1").only("stsl,psld", "sr4")
blocks, _ = choose_blocks(suite, {}, device=None, precision="auto", offline=True)
plan = Plan(suite, blocks, builtin_faces(blocks[0].prior, count=1), fast=True)

with Store(out, create=True) as store:
    for unit, error in Driver(store, plan).run(Local()):
        print(unit.method.name, unit.task, unit.measured.image, error or "done")
    for _ in score_missing(store):
        pass
    rows = [dict(row) for row in store.all("select m.method, u.* from members m join units u on u.key = m.key")]
for row in rows:
    print(f"{row['method']}: PSNR {row['psnr']:.2f} dB, {row['unet_samples']:.0f} evaluations")
write_json(out / "run.json", {"rows": rows})
images.write(out / "comparison.png", images.comparison([[(r["method"], images.read(out / r["png"]).x) for r in rows]]))
