"""Does a picture show what a text says? By the cosines of a CLIP, which nothing here has as a loss."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stsl.perceptual.find import Kind, find, modified, shipped
from stsl.priors.folder import CLIP_CONFIGS, Folder
from stsl.priors.load import builtin_folder
from stsl.shapes import Image, PerImage

BUILTIN = "faces-clip"
CLIP_MODEL = Kind("clip", "CLIP", "CLIPModel", BUILTIN, CLIP_CONFIGS, "openai/clip-vit-large-patch14")


class CLIP(nn.Module):
    """Cosines of pictures with texts, and which of two texts a picture is nearer to. Frozen, in eval mode.

    Its weights judge edits and are no editor's loss: a picture made to please a network would be praised by it. What
    the ViT losses load is another class of network.

    Source: Hessel et al. 2021, arXiv:2104.08718; the accuracy is that of Parmar et al. 2023, arXiv:2302.03027 (which
    Rout et al. 2024, arXiv:2312.00852, section 5.1 cite, without naming a model).

    Args:
        clip: a transformers `CLIPModel`.
        tokenizer: of its texts.
        mean, std: per channel, that pixels in [0, 1] are brought to 0 and 1 by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, tokenizer: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.size = int(clip.config.vision_config.image_size)
        self.length = int(clip.config.text_config.max_position_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def similarity(self, x: Image, texts: Sequence[str]) -> Tensor:
        """cos(picture, text), shape (B, number of texts), in [−1, 1].

        Args:
            x: pictures in [0, 1], shape (B, 3, H, W), clamped here. Of an oblong one the middle square is looked at.
            texts: what they might show.

        Raises:
            ValueError: not (B, 3, H, W), no text, or one with more tokens than the text encoder reads.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"CLIP looks at (B, 3, H, W) pictures, got {tuple(x.shape)}")
        out = self.clip(input_ids=self._tokens(texts), pixel_values=self._pixels(x))
        pictures, said = (nn.functional.normalize(part, dim=-1) for part in (out.image_embeds, out.text_embeds))
        return pictures @ said.T

    def gain(self, x: Image, source: str, target: str) -> PerImage:
        """How much nearer pictures are to one text than to another, shape (B,): cos(x, target) − cos(x, source)."""
        cosines = self.similarity(x, [source, target])
        return cosines[:, 1] - cosines[:, 0]

    def accuracy(self, x: Image, source: str, target: str) -> PerImage:
        """1 for each picture that is nearer to `target` than to `source`, else 0: the papers' accuracy is the mean."""
        return (self.gain(x, source, target) > 0).to(x.dtype)

    def balanced_accuracy(self, sources: Image, targets: Image, source: str, target: str) -> float:
        """How well this CLIP tells two sets of pictures apart, both counting the same; 0.5 is chance.

        ½ [share of `sources` nearer to `source`] + ½ [share of `targets` nearer to `target`]

        With photos of both kinds this is the ceiling of what edits can reach; with unedited photos and their edits it
        is their accuracy, which a CLIP that always says `target` cannot raise.

        Raises:
            ValueError: one of the sets is empty.
        """
        if not len(sources) or not len(targets):
            raise ValueError(f"pictures of both kinds are needed, got {len(sources)} and {len(targets)}")
        right = self.accuracy(targets, source, target).mean() + self.accuracy(sources, target, source).mean()
        return float(right / 2)

    def _pixels(self, x: Image) -> Tensor:
        height, width = x.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        x = x[..., top : top + side, left : left + side].to(self.mean.dtype)
        x = interpolate(x, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            raise ValueError("give at least one text to compare the pictures with")
        ids = self.tokenizer(
            list(texts), padding="max_length", max_length=self.length, verbose=False, return_tensors="pt"
        ).input_ids
        if ids.shape[1] > self.length:
            longest = max(texts, key=len)
            raise ValueError(f"this CLIP reads {self.length} tokens, and {longest!r} has more: give a shorter text")
        return ids.to(self.mean.device)


def load_clip(
    name: str | Path = "",
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    offline: bool = False,
) -> CLIP:
    """A CLIP: the one that ships with the package, a transformers folder, or a hub id.

    >>> load_clip("path/to/folder").similarity(x, ["a neutral face", "a smiling face"])
    >>> load_clip("openai/clip-vit-large-patch14")

    A folder holds config.json, model.safetensors, preprocessor_config.json and the tokenizer of a `CLIPModel`; it is
    read by the rules of `stsl.priors.folder`, and once: the same files give the same module again.

    Args:
        name: built-in name, path of a folder, or hub id "owner/model", with "@" before a revision; "" is `faces-clip`.
        device, dtype: what it computes on and with.
        offline: a hub id must be in the cache already.

    Raises:
        FileNotFoundError: nothing of that name, or a file is missing in the folder.
        ValueError: damaged or unsafe files, another class than `CLIPModel`.
        ConnectionError, PermissionError: the hub could not be reached, or wants its terms accepted first.
    """
    folder = find(name, CLIP_MODEL, builtin_folder(), offline=offline)
    return _loaded(folder, modified(folder, CLIP_MODEL), torch.device(device), dtype)


def builtin_clips() -> list[str]:
    """Names of the CLIPs that ship with the package."""
    return shipped(CLIP_MODEL, builtin_folder())


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, changed: int, device: torch.device, dtype: torch.dtype) -> CLIP:
    files = Folder(folder)
    config, pixels = files.config("clip"), files.pixel_statistics()
    with torch.inference_mode(False):
        tokenizer = files.tokenizer(config["text_config"])
        clip = files.network("clip", config, torch.device("cpu"))
        return CLIP(clip, tokenizer, *pixels).to(device, dtype)
