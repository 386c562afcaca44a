"""What a picture shows, as 512 numbers: the features that distances between sets of pictures compare."""

import torch
from torch import Tensor, nn

from stsl.perceptual.lpips import SMALLEST, fetched
from stsl.shapes import Image


class PooledVGG(nn.Module):
    """The last convolution of VGG-16 after its ReLU (relu5_3), averaged over positions: 512 numbers per picture.

    Its weights are those of LPIPS, fetched by `stsl fetch lpips`. Pictures are looked at in their own size, so only
    features of pictures of one size may be compared. Distances in them are not the published FID, which is taken in
    features of the Inception network.

    Raises:
        FileNotFoundError: the weights were not fetched.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = fetched("vgg")
        # Mean and std of ImageNet's pixels, which the network was trained with.
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Image) -> Tensor:
        """Features of pictures in [0, 1], (B, 3, H, W) -> (B, 512).

        Raises:
            ValueError: not (B, 3, H, W), or too small for the network.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < SMALLEST["vgg"]:
            raise ValueError(f"VGG looks at (B, 3, H, W) pictures of at least 16 x 16 pixels, got {tuple(x.shape)}")
        return self.features((x.to(self.mean.dtype) - self.mean) / self.std).mean(dim=(2, 3))
