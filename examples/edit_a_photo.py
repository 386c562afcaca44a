"""Make a photo small, and change its expression by two texts while restoring it."""

import sys

from stsl import STSL, STSLCAT, Edit, Editing, images, load_prior, tasks

out = sys.argv[1] if len(sys.argv) > 1 else "edited"
x = images.astronaut_face()  # public domain; a photo of yours comes in with images.read(path).x
y, physics = tasks.measure("sr4", x, noise=0.005, ids=["astronaut"])

editor = STSLCAT(steps=10, null_steps=2, guidance=3.0, restorer=STSL.preset("fast"))
editing = Editing(load_prior("faces-128"), editor)
run = editing.frames(y, physics, Edit(source="a neutral face", target="a smiling face"), ids=["astronaut"])
for frame in run:  # stages: restore, invert, null, edit
    if frame.index == 0:
        print(f"{frame.stage}: {frame.total} steps")
print("written to", run.result().save(out, maps=True))
