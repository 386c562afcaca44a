"""What priors made of networks share: precision, recomputing instead of keeping, compiling."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.utils.checkpoint import checkpoint

from stsl.priors.base import Precision, Prior, noise_of
from stsl.priors.precision import DTYPES, allow, store
from stsl.schedule import VariancePreserving

# Up to this many tokens plain attention is the faster one on CPUs, forward and backward together; docs/performance.md.
FEW_TOKENS = 256


class NetworkPrior(Prior):
    """A prior whose parts are diffusers models.

    Attributes:
        precision: what the networks compute with.
        commit: the hub's commit they came from.
        prediction: what the UNet predicts.
        checkpointing: whether activations are recomputed in the backward pass instead of kept.
        compiled: whether the networks run through `torch.compile`, at fixed shapes.
    """

    precision: Precision
    commit: str | None
    prediction: str
    checkpointing: bool
    compiled: bool

    @abstractmethod
    def networks(self) -> list[Any]:
        """The diffusers models that a step may run."""

    def _adopt(
        self,
        scheduler: Mapping[str, Any],
        parts: list[Any],
        name: str,
        precision: Precision,
        commit: str | None,
        checkpointing: bool,
        compiled: bool,
    ) -> None:
        """Take over networks that are loaded: frozen, in their precision, and compiled part by part if asked."""
        self.name, self.commit, self.compiled = name, commit, compiled
        self.schedule = VariancePreserving.from_config(scheduler)
        self.prediction = str(scheduler.get("prediction_type", "epsilon"))
        noise_of(torch.zeros(1), torch.zeros(1), 1.0, 1.0, self.prediction)  # refuse it now, not in the first step
        allow(precision)
        self.requires_grad_(False).eval()
        self._compute_in(precision)
        self._recompute(checkpointing)
        if compiled:
            for part in parts:
                part.compile(dynamic=False)

    def lighten(self) -> str | None:
        if not self.checkpointing:
            self._recompute(True)
            return "activations are recomputed instead of kept: the same result, in about a third more time"
        if not self.is_narrow:
            self._compute_in("bf16")
            return "the networks compute in bf16 instead of fp32"
        return None

    @property
    def is_narrow(self) -> bool:
        return DTYPES[self.precision] != torch.float32

    @contextmanager
    def in_fp32(self) -> Iterator[None]:
        before = self.precision
        try:
            self._compute_in("fp32")
            yield
        finally:
            self._compute_in(before)  # from half precision to float32 and back nothing is lost

    def _compute_in(self, precision: Precision) -> None:
        # Under the caller's inference_mode the weights would become tensors that no gradient can pass.
        with torch.inference_mode(False), torch.no_grad():
            for network in self.networks():
                store(network, precision)
        self.precision = precision

    def _recompute(self, on: bool) -> None:
        # Frozen networks in eval mode draw nothing at random: no generator's state needs to be kept.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        for network in self.networks():
            if isinstance(network, AutoencoderTiny):
                continue  # keeps little; and diffusers' encoder leaves out its change of range when it recomputes
            if on:
                network.enable_gradient_checkpointing(again)
            else:
                network.disable_gradient_checkpointing()
        self.checkpointing = on

    def describe(self) -> dict[str, Any]:
        more = {"precision": self.precision, "prediction": self.prediction, "commit": self.commit}
        return super().describe() | more


def attend(unet: UNet2DConditionModel | UNet2DModel, device: torch.device) -> None:
    """Let a UNet that will run on `device` write softmax(Q Kᵀ) V out where that is faster than the fused kernel."""
    size = unet.config.sample_size
    h, w = (size, size) if isinstance(size, int) else size
    level = next((i for i, kind in enumerate(unet.config.down_block_types) if "Attn" in kind), 0)
    if device.type == "cpu" and (h >> level) * (w >> level) <= FEW_TOKENS:
        for layer in unet.modules():
            if isinstance(layer, Attention):
                layer.set_processor(AttnProcessor())
