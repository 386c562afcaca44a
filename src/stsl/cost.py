"""What a run costs: network evaluations forward and backward, and seconds."""

from dataclasses import dataclass

from torch import Tensor

from stsl.priors.base import Condition, Prior, Wrapped
from stsl.shapes import Image, Latent


@dataclass
class Cost:
    """Counts of a run.

    Attributes:
        unet_calls: calls of the network, whatever their batch.
        unet_samples, unet_backward_samples: rows that went through it, forward and backward.
        decoder_samples, decoder_backward_samples, encoder_samples, encoder_backward_samples: those of the
            autoencoder.
        seconds: from the first network call to the last.
    """

    unet_calls: int = 0
    unet_samples: int = 0
    unet_backward_samples: int = 0
    decoder_samples: int = 0
    decoder_backward_samples: int = 0
    encoder_samples: int = 0
    encoder_backward_samples: int = 0
    seconds: float = 0.0

    def share(self, images: int) -> "Cost":
        """One image's part of a batch; the calls were made for all of them."""
        counts = {key: value if key == "unet_calls" else value / images for key, value in vars(self).items()}
        return Cost(**counts)

    def per_image(self, images: int) -> dict[str, float]:
        """Every count but the calls divided by the number of images."""
        return dict(vars(self.share(images)))


class Metered(Wrapped):
    """A prior that counts what is asked of it, and is otherwise the one it wraps.

    A backward pass is counted when the gradient reaches the network's output, not when it might.
    """

    def __init__(self, prior: Prior, cost: Cost | None = None) -> None:
        super().__init__(prior)
        self.cost = Cost() if cost is None else cost

    def for_step(self, left: int) -> "Metered":
        chosen = self.prior.for_step(left)
        return self if chosen is self.prior else Metered(chosen, self.cost)

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        rows = z.shape[0] * self.tiles * (2 if condition is not None and condition.is_guided else 1)
        self.cost.unet_calls += 1
        self.cost.unet_samples += rows
        return self._count(self.prior.epsilon(z, t, condition), "unet_backward_samples", rows)

    def encode(self, x: Image) -> Latent:
        rows = x.shape[0] * self.tiles
        self.cost.encoder_samples += rows
        return self._count(self.prior.encode(x), "encoder_backward_samples", rows)

    def decode(self, z: Latent) -> Image:
        rows = z.shape[0] * self.tiles
        self.cost.decoder_samples += rows
        return self._count(self.prior.decode(z), "decoder_backward_samples", rows)

    def _count(self, out: Tensor, what: str, rows: int) -> Tensor:
        if out.requires_grad:
            cost = self.cost

            def counted(_: Tensor) -> None:
                setattr(cost, what, getattr(cost, what) + rows)

            out.register_hook(counted)
        return out
