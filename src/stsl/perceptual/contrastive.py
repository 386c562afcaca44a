"""The contrastive loss of DiffuseIT: how far two pictures differ in what a vision transformer sees in each patch."""

import functools
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from stsl.perceptual.find import Kind, find, modified, shipped
from stsl.priors.folder import VIT_CONFIGS, Folder
from stsl.priors.load import builtin_folder
from stsl.shapes import Image, PerImage

VIT = Kind("vit", "ViT", "ViTModel", "faces-vit", VIT_CONFIGS, "facebook/dino-vitb8")
TEMPERATURE = 0.07
LONGEST = 480 / 224  # of a picture's longer side, in sides of the square that the ViT was trained on

# The hook that catches the keys sits on the network for the time of one forward pass, which may belong to another run.
_one_at_a_time = threading.Lock()


class ContrastiveLoss(nn.Module):
    """Tells each patch of a picture from the other patches of its model, by the keys of a ViT's last attention layer.

    L(x, x₀) = −(1/N) Σᵢ log [ exp(Sᵢᵢ/τ) / Σⱼ exp(Sᵢⱼ/τ) ],  Sᵢⱼ = cos(kᵢ(x), kⱼ(x₀)),  τ = 0.07

    with kᵢ the keys of all heads of token i, one after another; the tokens are the N − 1 patches and the class. Small
    where each patch looks like the same patch of x₀ and like no other; not 0 for equal pictures. Frozen, in eval mode.

    Source: Kwon and Ye 2023, arXiv:2209.15264 (DiffuseIT), as its code has it; keys as in Tumanyan et al. 2022,
    arXiv:2201.00424 (Splice).

    Args:
        vit: a transformers `ViTModel`; the papers take DINO's ViT-B/8.
        mean, std: per channel, that pixels in [0, 1] are brought to 0 and 1 by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.vit = vit
        self.size = int(vit.config.image_size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Image, truth: Image) -> PerImage:
        """The loss of each picture against its model, shape (B,). Differentiable in `x` alone.

        Args:
            x: pictures in [0, 1], shape (B, 3, H, W). Not clamped.
            truth: what they are compared with, (B, 3, H, W) of the same proportions.
        """
        return self.against(self.keys(truth).detach(), x)

    def against(self, keys: Tensor, x: Image) -> PerImage:
        """The loss against models whose keys are known already, shape (B,).

        Raises:
            ValueError: the pictures have other proportions than their models.
        """
        mine = self.keys(x)
        if mine.shape != keys.shape:
            raise ValueError(f"pictures have keys of shape {tuple(mine.shape)}, their models of {tuple(keys.shape)}")
        alike = normalize(mine, dim=-1) @ normalize(keys, dim=-1).transpose(1, 2)
        return -(alike / TEMPERATURE).log_softmax(-1).diagonal(dim1=1, dim2=2).mean(1)

    def keys(self, x: Image) -> Tensor:
        """Keys of all tokens, shape (B, 1 + patches, width).

        Raises:
            ValueError: not (B, 3, H, W).
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"a ViT looks at (B, 3, H, W) pictures, got {tuple(x.shape)}")
        # Bilinear without antialiasing, inside the graph, as in DiffuseIT's code.
        x = interpolate(x.to(self.mean.dtype), self._fitted(x.shape[2], x.shape[3]), mode="bilinear")
        caught: list[Tensor] = []
        # What the projections are called depends on the version of transformers.
        named = self.vit.named_modules()
        *_, projection = (layer for name, layer in named if name.endswith((".k_proj", ".attention.key")))
        with _one_at_a_time:
            hook = projection.register_forward_hook(lambda layer, given, keys: caught.append(keys))
            try:
                self.vit((x - self.mean) / self.std, interpolate_pos_encoding=True)
            finally:
                hook.remove()
        return caught[0]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """The shorter side as the ViT knows it, the longer one in proportion up to 480/224 of that."""
        scale = min(self.size / min(height, width), LONGEST * self.size / max(height, width))
        patch = int(self.vit.config.patch_size)
        return max(patch, round(height * scale)), max(patch, round(width * scale))


def load_contrastive(
    name: str | Path = "",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    offline: bool = False,
) -> ContrastiveLoss:
    """The contrastive loss of a ViT: one that ships with the package, a transformers folder, or a hub id.

    >>> load_contrastive("path/to/folder")
    >>> load_contrastive("facebook/dino-vitb8@refs/pr/1")

    A folder holds config.json, model.safetensors and preprocessor_config.json of a `ViTModel`; it is read by the rules
    of `stsl.priors.folder`, and once: the same files give the same module again.

    Args:
        name: built-in name, path of a folder, or hub id "owner/model", with "@" before a revision; "" is `faces-vit`.
        device, dtype: what it computes on and with.
        offline: a hub id must be in the cache already.

    Raises:
        FileNotFoundError: nothing of that name, or a file is missing in the folder.
        ValueError: damaged or unsafe files, another class than `ViTModel`.
        ConnectionError, PermissionError: the hub could not be reached, or wants its terms accepted first.
    """
    folder = find(name, VIT, builtin_folder(), offline=offline)
    return _loaded(folder, modified(folder, VIT), torch.device(device), dtype)


def builtin_vits() -> list[str]:
    """Names of the ViTs for this loss that ship with the package."""
    return shipped(VIT, builtin_folder())


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, changed: int, device: torch.device, dtype: torch.dtype) -> ContrastiveLoss:
    files = Folder(folder)
    with torch.inference_mode(False):  # what a caller's mode made could not be differentiated through later
        vit = files.network("vit", files.config("vit"), torch.device("cpu"))
        return ContrastiveLoss(vit, *files.pixel_statistics()).to(device, dtype)
