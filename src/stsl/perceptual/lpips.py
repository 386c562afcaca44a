"""LPIPS: how different two images look, by the features of a network trained to see."""

import difflib
from importlib.metadata import distribution
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from stsl import files
from stsl.shapes import Image, PerImage

NETS = {"vgg": "vgg16", "alex": "alexnet"}
# Outputs of the network's features that are compared: the last ReLU before each pooling, and AlexNet's conv3 to conv5.
TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
# The smallest side that leaves one position at the last of them.
SMALLEST = {"vgg": 16, "alex": 31}


class LPIPS(nn.Module):
    """Distance between the features of two images, weighted per channel to agree with human judgement (version 0.1).

    d(x, x0) = Σ_l mean_{h,w} Σ_c w_lc (f̂_lc(x) − f̂_lc(x0))²,  f̂ = f / √(‖f‖² + 1e-8), the norm over channels

    Frozen; 0 for equal images. The epsilon stands inside the root, as in torchmetrics, so that the root has a finite
    slope where all features of a position are zero; the paper's code adds 1e-10 to the norm.

    Source: Zhang et al. 2018, arXiv:1801.03924, Equation 1; channel weights of the `lpips` package, from torchmetrics.

    Args:
        net: "vgg" (VGG-16, the one most restoration papers report) or "alex" (AlexNet, faster).

    Raises:
        ValueError: there is no such net.
        FileNotFoundError: the weights of the network were not fetched.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        self.net = net
        self.features = fetched(net)
        for index, head in enumerate(_heads(net)):
            self.register_buffer(f"head{index}", head, persistent=False)
        # The original's mean and std of natural images, for images in [-1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @staticmethod
    def available(net: str = "vgg") -> bool:
        """Whether the weights of this net were fetched."""
        return weights_path(net).is_file()

    def forward(self, x: Image, truth: Image) -> PerImage:
        """Distance of each image from its partner; differentiable in both.

        Args:
            x: images in [0, 1], shape (B, 3, H, W), any floating type.
            truth: what they are compared with, same shape.

        Returns:
            Distances of shape (B,).

        Raises:
            TypeError: images are not floating point.
            ValueError: shapes differ, are not (B, 3, H, W), or are too small for the network.
        """
        for image in (x, truth):
            if not image.is_floating_point():
                raise TypeError(
                    f"LPIPS compares floating images in [0, 1], got {image.dtype}; divide 8-bit ones by 255"
                )
        if x.shape != truth.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"LPIPS compares two (B, 3, H, W) batches, got {tuple(x.shape)} and {tuple(truth.shape)}")
        if min(x.shape[-2:]) < SMALLEST[self.net]:
            raise ValueError(f"LPIPS {self.net} needs sides of {SMALLEST[self.net]} pixels, got {tuple(x.shape[-2:])}")
        distance = x.new_zeros(len(x), dtype=self.mean.dtype)
        for index, (a, b) in enumerate(zip(self._features(x), self._features(truth), strict=True)):
            head = self.get_buffer(f"head{index}")
            distance = distance + ((a - b).square() * head).sum(dim=1).mean(dim=(1, 2))
        return distance

    def _features(self, x: Image) -> list[Tensor]:
        taps, found = TAPS[self.net], []
        z = (2 * x.to(self.mean.dtype) - 1 - self.mean) / self.std
        for index, layer in enumerate(self.features):
            z = layer(z)
            if index in taps:
                found.append(z / (z.square().sum(dim=1, keepdim=True) + 1e-8).sqrt())
        return found


def weights_path(net: str) -> Path:
    """Where the weights of this net's features are kept.

    Raises:
        ValueError: there is no such net.
    """
    if net not in NETS:
        close = difflib.get_close_matches(net, [*NETS, *NETS.values()], n=1, cutoff=0.4)
        hint = f"; did you mean {next(k for k, v in NETS.items() if close[0] in (k, v))!r}?" if close else ""
        raise ValueError(f"LPIPS knows the nets {', '.join(NETS)}, got {net!r}{hint}")
    return files.cache() / "lpips" / f"{NETS[net]}.safetensors"


def fetched(net: str) -> nn.Sequential:
    """The layers of `trunk` with the weights that were fetched.

    Raises:
        FileNotFoundError: they were not; the message says how to get them.
    """
    path = weights_path(net)
    if not path.is_file():
        raise FileNotFoundError(f"the weights of {net} are needed at {path}; get them once with: stsl fetch lpips")
    features = trunk(net)
    features.load_state_dict(load_file(path), assign=True)
    return features


def trunk(net: str) -> nn.Sequential:
    """torchvision's layers of this net up to the last one compared, without weights (on the meta device)."""
    with torch.device("meta"):  # builds the classifier too, half a gigabyte for VGG: here it costs nothing
        features = getattr(torchvision.models, NETS[net])(weights=None).features
    return features[: TAPS[net][-1] + 1]


def _heads(net: str) -> list[Tensor]:
    """The non-negative channel weights w_l of version 0.1, each of shape (C, 1, 1)."""
    shipped = f"torchmetrics/functional/image/lpips_models/{net}.pth"
    path = Path(str(distribution("torchmetrics").locate_file(shipped)))  # read without the seconds its import takes
    weights = torch.load(path, weights_only=True, map_location="cpu")
    return [weights[f"lin{index}.model.1.weight"].reshape(-1, 1, 1) for index in range(len(TAPS[net]))]
