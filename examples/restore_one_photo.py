"""Make a photo small, restore it, and see what it cost."""

import sys

from stsl import STSL, Restorer, images, load_prior, metrics, tasks

out = sys.argv[1] if len(sys.argv) > 1 else "restored"
x = images.astronaut_face()  # public domain; a photo of yours comes in with images.read(path).x
y, physics = tasks.measure("sr4", x, noise=0.005, ids=["astronaut"])

restorer = Restorer(load_prior("faces-128"), STSL.preset("fast"))
result = restorer.solve(y, physics, ids=["astronaut"], seed=0)

print(f"PSNR {metrics.psnr(result.image, x).item():.2f} dB, residual {result.residual_rms.item():.4f}, {result.cost}")
print("written to", result.save(out))
