"""Noise as a function of what it is for."""

import hashlib
import itertools

import pytest
import torch

from stsl.rng import Rng, generator


def noise(rng=None, *, ids=("a",), like=None, draw=0, **fields):
    rng = rng or Rng(**({"seed": 0, "ids": ids} | fields))
    return rng.normal(torch.empty(len(rng.ids), 3, 8, 8) if like is None else like, draw)


def test_the_same_call_gives_the_same_noise_whatever_was_drawn_before():
    rng = Rng(0, ("a", "b"))
    first = noise(rng)
    noise(rng, draw=1)
    noise(rng.at("restore", 3))
    assert torch.equal(noise(rng), first)
    assert rng == Rng(0, ("a", "b"))


def test_an_image_meets_the_same_noise_in_any_batch():
    both = noise(ids=("a", "b"))
    assert torch.equal(both[1:], noise(ids=("b",)))
    assert torch.equal(both.flip(0), noise(ids=("b", "a")))


def test_every_part_of_the_key_gives_independent_noise():
    """Correlations of 192 independent pairs have standard deviation 1/√192 = 0.072; 5 of those is 0.36."""
    keys = [
        noise(),
        noise(seed=1),
        noise(ids=("b",)),
        noise(samples=(1,)),
        noise(stage="restore"),
        noise(step=1),
        noise(draw=1),
    ]
    for a, b in itertools.combinations(keys, 2):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.36


def test_parts_of_a_key_do_not_run_into_each_other():
    assert generator("a", 11).initial_seed() != generator("a1", 1).initial_seed()
    assert generator(1, 11).initial_seed() != generator(11, 1).initial_seed()


def test_a_key_means_the_same_on_every_machine():
    """The seed is the first 63 bits of BLAKE2b over the key's parts; Python's own hash changes from run to run."""
    digest = hashlib.blake2b(b"mask\x1f3\x1fimage.png", digest_size=8).digest()
    assert generator("mask", 3, "image.png").initial_seed() == int.from_bytes(digest, "big") // 2


def test_noise_is_standard_normal():
    x = noise(like=torch.empty(1, 4, 64, 64))
    # 16384 numbers: their mean has standard deviation 0.0078, their variance 0.011; five of each.
    assert abs(x.mean()) < 0.04
    assert abs(x.var() - 1) < 0.055


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_of_the_tensor_does_not_change_the_noise(dtype):
    x = noise(like=torch.empty(1, 3, 8, 8, dtype=dtype))
    assert x.dtype == dtype
    assert torch.equal(x, noise().to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_of_the_tensor_does_not_change_the_noise():
    x = noise(like=torch.empty(1, 3, 8, 8, device="cuda"))
    assert x.device.type == "cuda"
    assert torch.equal(x.cpu(), noise())


def test_the_callers_default_type_and_device_do_not_change_the_noise():
    expected, like = noise(), torch.empty(1, 3, 8, 8)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        x = noise(like=like)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(x, expected)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    noise()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_left_out_are_all_the_first():
    assert torch.equal(noise(ids=("a", "b"), samples=(0, 0)), noise(ids=("a", "b")))


def test_a_batch_without_names_for_all_is_refused():
    with pytest.raises(ValueError, match="noise for 3 images, but there are 2 ids"):
        Rng(0, ("a", "b")).normal(torch.empty(3, 1))
    with pytest.raises(ValueError, match="1 sample numbers for 2 ids"):
        Rng(0, ("a", "b"), (0,))
