"""Control over attention: which maps change, and which stay bit by bit."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.testing import assert_close

from models import prior_named, sd15_folder
from stsl.priors.attention import (
    Alignment,
    Control,
    controlled,
    following,
    present,
    refinement,
    replacement,
    split,
    text_prior,
    word_maps,
)
from stsl.priors.base import Condition
from stsl.priors.gaussian import GaussianPrior
from stsl.priors.load import load_prior

# What 16 or 77 tokens and either autoencoder leave the same.
PRIORS = ("faces-128", "kl", "kl fp16 files")
T = 501


@pytest.fixture(scope="module", params=PRIORS)
def prior(request, tmp_path_factory):
    return prior_named(request.param, tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return prior_named("kl", tmp_path_factory.mktemp("sd"))


def control_of(prior, source, target, *, refine=False, cross=1.0, self_attention=0.0, **more):
    words = split(prior, source), split(prior, target)
    alignment = (refinement if refine else replacement)(*words)
    return following(alignment, words[1], prior.latent_shape, cross=cross, self_attention=self_attention, **more)


def rows(prior, source, target, images=1):
    """Latents and embeddings: a row of the negative prompt for each, then sources, then targets."""
    z = torch.randn(images, *prior.latent_shape, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    texts = [""] * 2 * images + [source] * images + [target] * images
    text = prior.condition(texts).positive
    return torch.cat([z, z]), Condition(text, text)


def predicted(prior, z, condition, control=None, images=1, progress=0.0):
    with torch.no_grad(), controlled(prior.unet, images, control, progress) as maps:
        eps = prior.epsilon(z, T, condition)
    return eps, maps


# --- words and tokens


def test_words_have_the_tokens_that_the_whole_prompt_has(tiny):
    words = split(tiny, "A photo of  a dog, face")
    assert words.words == ("A", "photo", "of", "a", "dog,", "face")
    # photo, of and face are one token of this vocabulary; d, o, g and the comma are four.
    assert words.places == ((1,), (2,), (3,), (4,), (5, 6, 7, 8), (9,))
    assert len(words.ids) == 11
    assert words.length == 77
    assert words.tokens("Dog") == (5, 6, 7, 8)
    assert words.tokens("a") == (1, 4)


def test_a_word_that_is_not_there_is_refused_with_the_nearest(tiny):
    with pytest.raises(ValueError, match=r"no word 'fase'.*did you mean 'face'.*it has a, face"):
        split(tiny, "a face").tokens("fase")


def test_a_prompt_that_is_too_long_is_refused():
    prior = load_prior("faces-128", device="cpu", precision="fp32")
    with pytest.raises(ValueError, match=r"23 tokens with start and end, and prior 'faces-128' takes 16"):
        split(prior, "a smiling face " * 7)


def test_a_prior_without_text_is_refused():
    plain = GaussianPrior(torch.zeros(3, 4, 4), torch.eye(48))
    with pytest.raises(TypeError, match="'gaussian' is no text-conditional UNet"):
        text_prior(plain)


def test_replace_spreads_a_word_over_the_tokens_of_the_other(tiny):
    #         0 start, 1 a, 2 photo, 3 of, 4 end     ->   0 start, 1 a, 2 3 4 dog, 5 of, 6 end
    source, target = split(tiny, "a photo of"), split(tiny, "a dog of")
    aligned = replacement(source, target)
    expected = torch.zeros(77, 77)
    expected[0, 0] = expected[1, 1] = expected[3, 5] = expected[4, 6] = 1
    expected[2, 2:5] = 1 / 3
    expected[range(7, 77), range(7, 77)] = 1
    assert torch.equal(aligned.matrix, expected)
    assert aligned.partner.all()
    back = replacement(target, source)
    assert torch.equal(back.matrix[2:5, 2], torch.ones(3))
    # The source's padding begins two places later: the target's first two paddings keep their own maps.
    assert (~back.partner).nonzero().flatten().tolist() == [5, 6]


def test_replace_refuses_prompts_of_different_length_and_names_both(tiny):
    with pytest.raises(ValueError, match=r"3 and 2 words \(a, photo, of \| a, face\).*use mode=refine"):
        replacement(split(tiny, "a photo of"), split(tiny, "a face"))


def test_refine_keeps_what_both_prompts_have_and_leaves_the_new_words_alone(tiny):
    #          0 start 1 a 2 face 3 end               ->  0 start 1 a 2 photo 3 of 4 a 5 face 6 end
    aligned = refinement(split(tiny, "a face"), split(tiny, "a photo of a face"))
    partners = {j: aligned.matrix[:, j].nonzero().flatten().tolist() for j in range(8)}
    assert partners[0] == [0]
    assert partners[5] == [2]
    assert partners[6] == [3]
    assert partners[2] == partners[3] == []
    assert sorted([partners[1], partners[4]]) == [[], [1]]
    assert torch.equal(aligned.partner, aligned.matrix.sum(0) > 0)
    assert partners[7] == [7]


def test_equal_prompts_are_aligned_with_themselves(tiny):
    words = split(tiny, "a photo of a dog")
    for align in (replacement, refinement):
        assert torch.equal(align(words, words).matrix, torch.eye(77))


# --- one layer, by hand


@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0()], ids=["plain", "fused"])
def test_a_layer_gives_the_targets_values_under_the_edited_map(processor):
    draws = torch.Generator().manual_seed(0)
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4, processor=processor).double()
    torch.random.set_rng_state(torch_state)
    x, text = (torch.randn(shape, generator=draws, dtype=torch.float64) for shape in ((4, 9, 8), (4, 5, 6)))
    unet = torch.nn.ModuleDict({"attn2": torch.nn.Module()})
    unet["attn2"].add_module("attn2", layer)
    alignment = Alignment(torch.eye(5)[:, [0, 2, 1, 3, 4]], torch.tensor([True, True, True, False, True]))
    weights, until = torch.tensor([1.0, 1.0, 3.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.2])
    control = Control(alignment, weights, until, 0.0, 0)
    with torch.no_grad(), controlled(unet, 1, control, progress=0.5) as maps:
        out = layer(x, encoder_hidden_states=text)
    with torch.no_grad():
        plain = layer(x, encoder_hidden_states=text)

        def heads(v):
            return v.unflatten(-1, (2, 4)).transpose(1, 2)

        q, k, v = heads(layer.to_q(x)), heads(layer.to_k(text)), heads(layer.to_v(text))
        own = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        edited = own[3].clone()
        edited[..., [0, 1]] = own[2][..., [0, 2]]  # tokens 0 and 1 follow 0 and 2
        edited[..., 2] = 3 * own[2][..., 1]  # token 2 follows 1, three times as strong; 3 has no partner, 4 is past
        by_hand = layer.to_out[0]((edited @ v[3]).transpose(0, 1).flatten(1))
    # Maps move in float32, which is what every network computes at most with.
    assert_close(out[3], by_hand, rtol=0, atol=1e-6)
    assert torch.equal(out[:3], plain[:3])
    assert not torch.allclose(out[3], plain[3])
    assert_close(maps.layers["attn2.attn2"].double(), torch.stack([own[2].mean(0), edited.mean(0)]), rtol=0, atol=1e-6)


# --- whole networks


def test_only_the_maps_of_the_named_word_change(prior):
    """Everything follows the source but the word "face", in every layer, although the layers' inputs differ."""
    source, target = ("a neutral face", "a neutral face")
    control = control_of(prior, source, target, weights={"face": 2.5})
    z, condition = rows(prior, source, target)
    _, maps = predicted(prior, z, condition, control)
    named = torch.zeros(split(prior, target).length, dtype=torch.bool)
    named[list(split(prior, target).tokens("face"))] = True
    assert len(maps.layers) >= 5
    for layer in maps.layers.values():
        mine, theirs = layer
        assert torch.equal(theirs[:, ~named], mine[:, ~named])
        assert_close(theirs[:, named], 2.5 * mine[:, named])


def test_a_word_with_a_gate_of_its_own_keeps_its_own_map(prior):
    source, target = ("a neutral face", "a smiling face")
    z, condition = rows(prior, source, target)
    _, maps = predicted(prior, z, condition, control_of(prior, source, target, refine=True))
    words = split(prior, target)
    fresh = ~refinement(split(prior, source), words).partner
    # Letters that both words have are shared tokens; what is new lies within the new word, or in unequal padding.
    new = set(fresh.nonzero().flatten().tolist())
    assert new & set(words.places[1])
    for mine, theirs in maps.layers.values():
        moved = mine @ refinement(split(prior, source), words).matrix
        assert_close(theirs[:, ~fresh], moved[:, ~fresh], rtol=0, atol=1e-6)
        assert not torch.equal(theirs[:, fresh], mine[:, fresh])
    _, gated = predicted(prior, z, condition, control_of(prior, source, source, gates={"face": 0.0}), progress=0.5)
    face = list(split(prior, source).tokens("face"))
    rest = [place for place in range(words.length) if place not in face]
    for mine, theirs in gated.layers.values():
        assert torch.equal(theirs[:, rest], mine[:, rest])
    assert any(not torch.equal(theirs[:, face], mine[:, face]) for mine, theirs in gated.layers.values())


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("processor", ["plain", "fused"])
def test_the_source_is_bit_by_bit_as_without_control(prior, images, processor):
    before = prior.unet.attn_processors
    try:
        prior.unet.set_attn_processor(AttnProcessor() if processor == "plain" else AttnProcessor2_0())
        control = control_of(prior, "a neutral face", "a smiling face", cross=0.8, self_attention=0.5)
        z, condition = rows(prior, "a neutral face", "a smiling face", images)
        with torch.no_grad():
            free = prior.epsilon(z, T, condition)
        eps, _ = predicted(prior, z, condition, control, images)
        assert torch.equal(eps[:-images], free[:-images])
        assert not torch.allclose(eps[-images:], free[-images:])
    finally:
        prior.unet.set_attn_processor(before)


@pytest.mark.parametrize("processor", ["plain", "fused"])
def test_identical_prompts_give_identical_branches(prior, processor):
    before = prior.unet.attn_processors
    try:
        prior.unet.set_attn_processor(AttnProcessor() if processor == "plain" else AttnProcessor2_0())
        control = control_of(prior, "a smiling face", "a smiling face", self_attention=1.0)
        z, condition = rows(prior, "a smiling face", "a smiling face")
        eps, _ = predicted(prior, z, condition, control)
        assert torch.equal(eps[2], eps[3])
    finally:
        prior.unet.set_attn_processor(before)


def test_past_its_time_control_changes_nothing(prior):
    source, target = "a neutral face", "a smiling face"
    z, condition = rows(prior, source, target)
    free, _ = predicted(prior, z, condition)
    control = control_of(prior, source, target, cross=0.8, self_attention=0.5)
    assert torch.equal(predicted(prior, z, condition, control, progress=0.8)[0], free)
    during = [predicted(prior, z, condition, control, progress=p)[0] for p in (0.0, 0.49, 0.5, 0.79)]
    assert torch.equal(during[0], during[1])
    assert torch.equal(during[2], during[3])
    assert not torch.equal(during[1], during[2])
    assert not torch.equal(during[3], free)


def test_self_attention_follows_in_small_layers_only(tiny):
    z, condition = rows(tiny, "a face", "a face")
    z[3] += 1.0  # another latent, so that self-attention differs
    sizes = {}
    for places in (0, 4, 64):
        control = Control(replacement(*[split(tiny, "a face")] * 2), torch.ones(77), torch.zeros(77), 1.0, places)
        sizes[places] = predicted(tiny, z, condition, control)[0]
    free, _ = predicted(tiny, z, condition)
    assert torch.equal(sizes[0], free)
    assert not torch.equal(sizes[4], free)
    assert not torch.equal(sizes[64], sizes[4])


def test_too_few_rows_are_refused(tiny):
    z, condition = rows(tiny, "a face", "a face")
    with pytest.raises(ValueError, match="control over 3 sources and their targets needs 6 rows, got 4"):
        predicted(tiny, z, condition, images=3)


# --- recording


@pytest.mark.parametrize("which", ["faces-128", "kl"])
def test_maps_and_gradients_are_the_same_when_activations_are_recomputed(which, tmp_path):
    name = "faces-128" if which == "faces-128" else sd15_folder(tmp_path / "sd")
    found = []
    for checkpointing in (False, True):
        prior = load_prior(name, device="cpu", precision="fp32", checkpointing=checkpointing)
        control = control_of(prior, "a neutral face", "a smiling face", self_attention=1.0)
        z, condition = rows(prior, "a neutral face", "a smiling face")
        z.requires_grad_()
        with controlled(prior.unet, 1, control) as maps:
            runs = _count_calls(prior.unet)
            prior.epsilon(z, T, condition).square().sum().backward()
        found.append((maps, z.grad, runs))
    (plain, grad, once), (again, grad_again, twice) = found
    assert len(twice) > len(once)  # they were recomputed
    assert plain.layers.keys() == again.layers.keys()
    for name, maps in plain.layers.items():
        assert torch.equal(again.layers[name], maps)
    assert torch.equal(grad_again, grad)


def _count_calls(unet):
    """A list that grows with every call of a cross-attention layer."""
    calls = []
    for name, layer in unet.named_modules():
        if name.endswith("attn2"):
            layer.to_q.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_recording_alone_changes_nothing_and_maps_are_shares(prior):
    z, condition = rows(prior, "a neutral face", "a smiling face")
    with torch.no_grad():
        free = prior.epsilon(z, T, condition)
    eps, maps = predicted(prior, z, condition)
    assert torch.equal(eps, free)
    for layer in maps.layers.values():
        assert_close(layer.sum(-1), torch.ones(layer.shape[:2]), rtol=0, atol=1e-5)
    coarse = maps.coarse(prior.latent_shape)
    _, h, w = prior.latent_shape
    assert coarse.shape == (2, split(prior, "a").length, h // 4, w // 4)
    assert_close(coarse.sum(1), torch.ones(2, h // 4, w // 4), rtol=0, atol=1e-5)


def test_word_maps_are_pictures(prior):
    z, condition = rows(prior, "a neutral face", "a smiling face")
    _, maps = predicted(prior, z, condition)
    pictures = word_maps(maps.coarse(prior.latent_shape)[1:], split(prior, "a smiling face"), 32)
    assert [word for word, _ in pictures] == ["a", "smiling", "face"]
    for _, picture in pictures:
        assert picture.shape == (1, 3, 32, 32)
        assert 0 <= picture.min() < picture.max() <= 1


def test_a_mask_is_where_the_words_map_is_high():
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 1, 0, 0], maps[0, 2, 0, 0], maps[0, 1, 3, 3] = 1.0, 1.0, 0.5
    alone = present(maps, [1, 2], (8, 8), pooled=False)
    assert alone[0, 0, :2, :2].all()  # 2 of 2; the other corner has 0.5, a quarter
    assert alone.sum() == 4
    pooled = present(maps, [1, 2], (8, 8))
    assert pooled.sum() == 16
    assert present(maps, [1], (8, 8), pooled=False).sum() == 8


# --- the network is given back


def test_the_network_is_as_it_was_after_the_block_an_error_or_a_closed_generator(tiny):
    before = tiny.unet.attn_processors

    def untouched():
        now = tiny.unet.attn_processors
        return now.keys() == before.keys() and all(now[name] is before[name] for name in before)

    with controlled(tiny.unet, 1):
        assert not untouched()
    assert untouched()
    with pytest.raises(KeyError), controlled(tiny.unet, 1):
        raise KeyError
    assert untouched()

    def frames():
        with controlled(tiny.unet, 1):
            yield 1

    running = frames()
    next(running)
    assert not untouched()
    running.close()
    assert untouched()


def test_a_comparison_without_a_detail_shows_the_pictures_only():
    from stsl import images

    picture = torch.full((1, 3, 8, 8), 0.25)
    plain = images.comparison([[("a word", picture)]], inset=None)
    detailed = images.comparison([[("a word", picture)]])
    assert plain.shape[3] == detailed.shape[3]
    assert plain.shape[2] < detailed.shape[2]
    grey = ((plain[0] - 0.25).abs() < 1 / 255).all(0)
    assert grey[:, 24:280].sum() >= 256 * 256
    assert not (plain[0, 0] - plain[0, 2]).any()  # no coloured frame
