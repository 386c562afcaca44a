"""Pictures as latents of an autoencoder, encoded once and kept on disk."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stsl.files import atomic
from stsl.priors.folder import Folder
from stsl.shapes import Latent
from stsl.training.data import Pictures

BATCH = 16


@dataclass(frozen=True, eq=False)
class Latents:
    """Scaled latents of pictures and of their mirror images.

    Args:
        values: shape (N, 2, C, h, w), float16, a file mapped into memory.
        columns: as in `Pictures`.
        key: of the pictures and the autoencoder.
    """

    values: np.ndarray
    columns: Mapping[str, Sequence[str]]
    key: str

    def __len__(self) -> int:
        return len(self.values)

    def at(self, rows: Tensor, mirrored: Tensor) -> Latent:
        """Latents of pictures, mirrored or not, float32."""
        return torch.from_numpy(self.values[rows.numpy(), mirrored.long().numpy()]).float()

    def row(self, index: int) -> dict[str, str]:
        """What is known about one picture."""
        return {name: values[index] for name, values in self.columns.items()}


def load_vae(folder: Path, device: torch.device) -> Any:
    """The autoencoder of a folder that has `vae/`: a prior, or what `stsl train autoencoder` wrote.

    Raises:
        FileNotFoundError, ValueError: it has none, or one that does not load.
    """
    place = Folder(folder)
    return place.network("vae", place.config("vae"), device).eval().requires_grad_(False)


def encode(pictures: Pictures, vae: Any, folder: Path, key: str) -> Iterator[tuple[int, int] | Latents]:
    """Encode every picture and its mirror image; what was encoded is kept in `folder`.

    Args:
        pictures: what to encode.
        vae: the autoencoder, with its scaling factor.
        folder: where to keep the latents.
        key: what tells this autoencoder from others.

    Yields:
        (pictures encoded, pictures in all), and the `Latents` at the end.
    """
    whole = f"{pictures.key}-{key}"
    facts = {"key": whole, "count": len(pictures)}
    kept, file = folder / "latents.json", folder / "latents.bin"
    device = next(vae.parameters()).device
    scale, shift = float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)
    if not (kept.is_file() and (known := json.loads(kept.read_text("utf-8"))).items() >= facts.items()):
        shape: list[int] = []
        with atomic(file) as target, target.open("wb") as stream, torch.no_grad():
            for rows in torch.arange(len(pictures)).split(BATCH):
                x = 2 * pictures.at(rows).to(device) - 1
                out = vae.encode(torch.cat([x, x.flip(-1)]), return_dict=False)[0]
                v = out if isinstance(out, Tensor) else out.mean
                z = torch.stack(((v.float() - shift) * scale).half().chunk(2), 1).cpu().contiguous()
                stream.write(z.numpy().tobytes())
                shape = list(z.shape[1:])
                yield int(rows[-1]) + 1, len(pictures)
            kept.unlink(missing_ok=True)
        known = facts | {"shape": shape}
        with atomic(kept) as target:
            target.write_text(json.dumps(known), encoding="utf-8")
    values = np.memmap(file, dtype=np.float16, mode="r", shape=(len(pictures), *known["shape"]))
    yield Latents(values, pictures.columns, whole)
