"""Control over the attention of a text-conditional UNet: a target prompt looks where its source prompt looked."""

import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import interpolate, linear, max_pool2d

from stsl.options import nearest
from stsl.priors.base import Prior, Wrapped
from stsl.priors.latent import LatentPrior

# Share of the largest value above which a word's map says that the word is there.
THRESHOLD = 0.3


# --- prompts, word by word


@dataclass(frozen=True)
class Words:
    """A prompt as the text encoder sees it.

    Args:
        text: the prompt.
        words: its words, as blanks divide them.
        places: the tokens of each word, as places in the padded sequence.
        ids: numbers of the tokens from the start token to the end token.
        length: of the padded sequence.
    """

    text: str
    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    ids: tuple[int, ...]
    length: int

    def tokens(self, word: str) -> tuple[int, ...]:
        """Places of the tokens of a word, wherever it occurs. Upper case and punctuation around it do not count.

        Raises:
            ValueError: the prompt has no such word; the nearest one is suggested.
        """
        found = [
            place for each, places in zip(self.words, self.places, strict=True) if _bare(each) == _bare(word)
            for place in places
        ]  # fmt: skip
        if not found:
            there = [_bare(each) for each in self.words]
            raise ValueError(
                f"the prompt {self.text!r} has no word {word!r}{nearest(_bare(word), there)}; it has "
                f"{', '.join(there) or 'none'}"
            )
        return tuple(found)


def split(prior: Prior, text: str) -> Words:
    """The tokens of a prompt, word by word.

    Raises:
        TypeError: the prior has no text encoder.
        ValueError: the prompt is longer than what the encoder takes.
    """
    latent = text_prior(prior)
    length = int(latent.text_encoder.config.max_position_embeddings)
    words = text.split()
    # The tokenizer divides at blanks before anything else: words one by one give the tokens of the whole.
    pieces = [latent.tokenizer(word, add_special_tokens=False, verbose=False).input_ids for word in words]
    ids = list(latent.tokenizer(text, verbose=False).input_ids)
    if len(ids) > length:
        raise ValueError(
            f"the prompt {text!r} has {len(ids)} tokens with start and end, and prior {prior.name!r} takes {length}: "
            "use fewer words"
        )
    assert ids[1:-1] == [number for piece in pieces for number in piece]
    places, at = [], 1
    for piece in pieces:
        places.append(tuple(range(at, at + len(piece))))
        at += len(piece)
    return Words(text, tuple(words), tuple(places), tuple(ids), length)


def _bare(word: str) -> str:
    return word.strip(string.punctuation).lower()


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which tokens of a source prompt those of a target prompt correspond to.

    Args:
        matrix: (L, L), source tokens to target tokens: maps of the target are maps of the source times this.
        partner: (L,), whether a target token has a source partner; one that has none keeps its own map.
    """

    matrix: Tensor
    partner: Tensor


def replacement(source: Words, target: Words) -> Alignment:
    """Match two prompts of equally many words, word by word.

    Words of unequally many tokens: each source token is spread over the n target tokens with weight 1/n. Padding stands
    where it stood.

    Raises:
        ValueError: the prompts have different numbers of words; both lists are named.

    Source: Hertz et al. 2022, arXiv:2208.01626, section 3.2 ("word swap"), as its code has it.
    """
    if len(source.words) != len(target.words):
        raise ValueError(
            f"replace swaps word for word, and the prompts have {len(source.words)} and {len(target.words)} words "
            f"({', '.join(source.words)} | {', '.join(target.words)}): write them with equally many, or use "
            "mode=refine, which keeps the words that both have"
        )
    pairs = [((0,), (0,)), *zip(source.places, target.places, strict=True)]
    pairs.append(((len(source.ids) - 1,), (len(target.ids) - 1,)))
    return _aligned(pairs, source, target)


def refinement(source: Words, target: Words) -> Alignment:
    """Match the tokens that two prompts share, in order; new tokens of the target have no partner.

    The longest common subsequence, by the alignment of Needleman and Wunsch with gap 0, match 1 and mismatch −1.
    Padding stands where it stood.

    Source: Hertz et al. 2022, arXiv:2208.01626, section 3.2 ("prompt refinement"), as its code has it.
    """
    a, b = source.ids, target.ids
    score = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, start=1):
        for j, y in enumerate(b, start=1):
            score[i][j] = max(score[i - 1][j], score[i][j - 1], score[i - 1][j - 1] + (1 if x == y else -1))
    pairs, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1] and score[i][j] == score[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
            pairs.append(((i,), (j,)))
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return _aligned(pairs, source, target)


def _aligned(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], source: Words, target: Words) -> Alignment:
    matrix = torch.zeros(source.length, target.length)
    for mine, theirs in pairs:
        for k, place in enumerate(theirs):
            if len(mine) == len(theirs):
                matrix[mine[k], place] = 1.0
            else:
                matrix[list(mine), place] = 1 / len(theirs)
    for place in range(max(len(source.ids), len(target.ids)), target.length):
        matrix[place, place] = 1.0
    return Alignment(matrix, matrix.sum(0) > 0)


# --- control


@dataclass(frozen=True, eq=False)
class Control:
    """How the attention of a target prompt follows that of its source prompt. Times are shares of all steps.

    A cross-attention map, for each target token j, with progress p of the steps in [0, 1):

        M*_j = w_j (M_source P)_j  or, for a token without partner, w_j M_target,j;  M_target,j itself once p ≥ until_j

    Self-attention maps are the source's while p < self_until, in layers of at most `places` places.

    Source: Hertz et al. 2022, arXiv:2208.01626, section 3.2, equations 5 to 7.

    Args:
        alignment: P, and which tokens have a partner.
        weights: w, (L,).
        until: (L,).
        self_until: share of the steps in which self-attention follows.
        places: most places of a layer whose self-attention follows.
    """

    alignment: Alignment
    weights: Tensor
    until: Tensor
    self_until: float
    places: int

    def cross(self, source: Tensor, target: Tensor, progress: float) -> Tensor:
        """M* of maps (..., places, L)."""
        matrix, partner, weights, until = (
            tensor.to(source.device)
            for tensor in (self.alignment.matrix, self.alignment.partner, self.weights, self.until)
        )
        # Autocast would round the maps of the tokens that only move to another place.
        with torch.autocast(source.device.type, enabled=False):
            moved = (source.float() @ matrix).to(source.dtype)
        edited = torch.where(partner, moved, target) * weights.to(source.dtype)
        return torch.where(progress < until, edited, target)

    def own(self, source: Tensor, target: Tensor, progress: float) -> Tensor:
        """The map of self-attention, (..., places, places)."""
        follows = progress < self.self_until and source.shape[-1] <= self.places
        return source if follows else target


def following(
    alignment: Alignment,
    target: Words,
    latent_shape: tuple[int, ...],
    *,
    cross: float,
    self_attention: float,
    weights: Mapping[str, float] | None = None,
    gates: Mapping[str, float] | None = None,
) -> Control:
    """The control of a target prompt.

    Args:
        alignment: of its tokens with the source's.
        target: the prompt's words.
        latent_shape: (C, h, w); self-attention is controlled where there are at most (h/2) (w/2) places.
        cross, self_attention: share of the steps in which each kind of attention follows the source.
        weights: target word -> factor of its map.
        gates: target word -> a share of its own in place of `cross`.

    Raises:
        ValueError: a word that the prompt does not have.
    """
    factor, until = torch.ones(target.length), torch.full((target.length,), float(cross))
    for word, value in (weights or {}).items():
        factor[list(target.tokens(word))] = value
    for word, value in (gates or {}).items():
        until[list(target.tokens(word))] = value
    _, h, w = latent_shape
    return Control(alignment, factor, until, float(self_attention), (h // 2) * (w // 2))


@dataclass(frozen=True, eq=False)
class Maps:
    """What cross-attention looked at in one call of a UNet.

    A layer that runs twice, as recomputing activations makes it, leaves its map once.

    Args:
        layers: name -> maps after control, mean over the heads, (2 B, places, L): source rows, then target rows.
    """

    layers: dict[str, Tensor] = field(default_factory=dict)

    def coarse(self, latent_shape: tuple[int, ...]) -> Tensor:
        """Mean of the layers whose sides are nearest to a quarter of the latent's, (2 B, L, h/4, w/4)."""
        _, h, w = latent_shape
        sizes = {maps.shape[1] for maps in self.layers.values()}
        size = min(sizes, key=lambda places: (abs(places - h * w / 16), places))
        mean = torch.stack([maps for maps in self.layers.values() if maps.shape[1] == size]).mean(0)
        rows = max(1, round((size * h / w) ** 0.5))
        return mean.transpose(1, 2).unflatten(2, (rows, size // rows))


@contextmanager
def controlled(
    unet: UNet2DConditionModel, images: int, control: Control | None = None, progress: float = 0.0
) -> Iterator[Maps]:
    """Control the attention of a UNet inside the block, and record its cross-attention.

    The last 2 `images` rows of every call are the conditional rows of the sources and then those of their targets;
    rows before them, such as those of the negative prompt, are left alone. The source rows come out bit by bit as
    without control, whatever attention kernel is in use. The UNet is as it was when the block ends, however it ends.

    A backward pass belongs inside the block: where activations are recomputed, attention runs again.

    Args:
        unet: any, with attention in `BasicTransformerBlock`s.
        images: B.
        control: None only records.
        progress: share of the steps that are done.
    """
    maps = Maps()
    named = {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, Attention) and name.endswith((".attn1", ".attn2"))
    }
    before = {name: layer.processor for name, layer in named.items()}
    try:
        # What torch.compile has made of the UNet knows nothing of this.
        with torch.compiler.set_stance("force_eager"):
            for name, layer in named.items():
                layer.set_processor(cast(Any, _Controlled(before[name], name, images, control, progress, maps)))
            yield maps
    finally:
        for name, layer in named.items():
            layer.set_processor(before[name])


@dataclass(frozen=True, eq=False)
class _Controlled:
    """An attention processor around another one. It adds to the target rows what the control changes:

    out ← out + W_out (M* − M) V
    """

    processor: Any
    name: str
    images: int
    control: Control | None
    progress: float
    maps: Maps

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        is_cross, control = encoder_hidden_states is not None, self.control
        if not is_cross and (
            control is None or self.progress >= control.self_until or hidden_states.shape[1] > control.places
        ):
            return out
        if hidden_states.shape[0] < 2 * self.images:
            raise ValueError(
                f"control over {self.images} sources and their targets needs {2 * self.images} rows, got "
                f"{hidden_states.shape[0]}"
            )
        rows = slice(-2 * self.images, None)
        looking = hidden_states[rows]
        at = looking if encoder_hidden_states is None else encoder_hidden_states[rows]
        if is_cross and attn.norm_cross:
            at = attn.norm_encoder_hidden_states(at)
        query, key, value = attn.to_q(looking), attn.to_k(at), attn.to_v(at)
        maps = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
        source, target = maps.chunk(2)
        if control is None:
            edited = target
        elif is_cross:
            edited = control.cross(source, target, self.progress)
        else:
            edited = control.own(source, target, self.progress)
        if is_cross:
            both = torch.cat([source, edited]).detach().float()
            self.maps.layers[self.name] = both.unflatten(0, (2 * self.images, -1)).mean(1)
        if control is None:
            return out
        change = torch.bmm(edited - target, attn.head_to_batch_dim(value).chunk(2)[1])
        change = linear(attn.batch_to_head_dim(change), attn.to_out[0].weight) / attn.rescale_output_factor
        still = out[: -self.images]
        return torch.cat([still, out[-self.images :] + change.to(out.dtype)])


# --- maps as masks and pictures


def present(maps: Tensor, tokens: Sequence[int], size: tuple[int, int], *, pooled: bool = True) -> Tensor:
    """Where some tokens are, as their maps say: bool, (B, 1, h, w).

    Their sum, its largest value within 3 x 3 places, at the latents' size: where above 0.3 of its maximum.

    Args:
        maps: (B, L, rows, columns), a sum or mean over layers and steps.
        tokens: which ones.
        size: (h, w).
        pooled: take the largest value around each place.

    Source: the local blend of Hertz et al. 2022, arXiv:2208.01626, as its code has it.
    """
    there = maps[:, list(tokens)].sum(1, keepdim=True)
    if pooled:
        there = max_pool2d(there, 3, stride=1, padding=1)
    there = interpolate(there, size, mode="nearest")
    return there / there.amax((1, 2, 3), keepdim=True).clamp(min=1e-12) > THRESHOLD


def word_maps(maps: Tensor, words: Words, side: int) -> list[tuple[str, Tensor]]:
    """The map of each word as a picture, (1, 3, side, side) in [0, 1], each scaled to its own maximum.

    Args:
        maps: of one image, (1, L, rows, columns).
        words: the prompt's.
        side: pixels of the picture.
    """
    pictures = []
    for word, places in zip(words.words, words.places, strict=True):
        there = maps[:, list(places)].sum(1, keepdim=True)
        there = interpolate(there / there.max().clamp(min=1e-12), (side, side), mode="bicubic").clamp(0, 1)
        pictures.append((word, there.expand(-1, 3, -1, -1)))
    return pictures


def text_prior(prior: Prior) -> LatentPrior:
    """The network with a text encoder inside a prior.

    Raises:
        TypeError: there is none.
    """
    inner = prior
    while isinstance(inner, Wrapped):
        inner = inner.prior
    if not isinstance(inner, LatentPrior):
        raise TypeError(
            f"prior {prior.name!r} is no text-conditional UNet, so a text cannot edit its images: give one such as "
            "faces-128 or a model in the layout of Stable Diffusion 1.x or 2.x"
        )
    return inner
