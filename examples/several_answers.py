"""Draw several answers for one measurement: where they differ, detail is invented."""

import sys

from stsl import STSL, Restorer, images, load_prior, tasks

out = sys.argv[1] if len(sys.argv) > 1 else "restored"
x = images.astronaut_face()
y, physics = tasks.measure("box_inpaint", x, noise=0.005, ids=["astronaut"])

restorer = Restorer(load_prior("faces-128"), STSL.preset("fast"))
run = restorer.frames(y, physics, ids=["astronaut"], samples=3)
for frame in run:  # progress, previews and stopping early are up to whoever reads the frames
    if frame.index % 10 == 0:
        print(f"step {frame.index} of {frame.total}, residual {frame.state.log['residual'].item():.4f}")
result = run.result()
print("mean std over the image:", round(result.std.mean().item(), 4), "written to", result.save(out))
