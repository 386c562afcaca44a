"""Pictures that the page shows, and the mask that comes back from it."""

import numpy as np
import pytest
import torch

from stsl import images
from stsl.app import pictures
from stsl.images import Box, Photo


def layer(height, width, *, alpha=255):
    """A layer with its lower right quarter painted."""
    drawn = np.zeros((height, width, 4), np.uint8)
    drawn[height // 2 :, width // 2 :] = (236, 72, 110, alpha)
    return drawn


def photo_of(x, alpha=None):
    path = images.reading.Path("a.png")
    return Photo(x=x, alpha=alpha, is_grey=False, bits=8, format="PNG", exif=b"GPS", icc=b"", path=path)


@pytest.mark.parametrize("size", [(40, 60), (80, 120), (400, 600), (39, 59)], ids=str)
def test_what_was_painted_on_a_copy_lands_on_the_photos_own_pixels(size):
    hole = pictures.mask_from_layers([layer(80, 120)], size)
    assert hole.shape == (1, 1, *size)
    expected = torch.zeros(size)
    expected[-(size[0] // 2) :, -(size[1] // 2) :] = 1  # of an odd side, the pixel in the middle stays
    assert set(hole.unique().tolist()) == {0.0, 1.0}
    assert (hole[0, 0] != expected).float().mean() <= (0 if size[0] % 2 == 0 else 0.03)


def test_layers_are_joined_and_faint_paint_does_not_count():
    other = np.zeros((20, 20, 4), np.uint8)
    other[:3, :4, 3] = 200
    both = pictures.mask_from_layers([layer(20, 20), other], (20, 20))
    assert both.sum() == 100 + 12
    assert pictures.mask_from_layers([layer(20, 20, alpha=127)], (20, 20)) is None
    assert pictures.mask_from_layers([], (20, 20)) is None


def test_a_layer_of_another_picture_is_refused():
    with pytest.raises(ValueError, match="other proportions"):
        pictures.mask_from_layers([layer(20, 40)], (40, 20))
    with pytest.raises(ValueError, match="alpha"):
        pictures.mask_from_layers([np.zeros((8, 8, 3), np.uint8)], (8, 8))


def test_a_painted_mask_reads_back_as_the_same_hole(tmp_path):
    hole = pictures.mask_from_layers([layer(16, 24)], (16, 24))
    pictures.write_mask(tmp_path / "m.png", hole)
    assert torch.equal(images.read_mask(tmp_path / "m.png"), 1 - hole)


def test_a_frame_stands_around_the_part_and_the_rest_is_paler():
    x = torch.zeros(1, 3, 300, 400)
    shown = pictures.framed(photo_of(x), Box(top=50, left=100, height=200, width=200))
    assert shown.shape == x.shape
    assert shown[0, :, 150, 200].tolist() == [0, 0, 0]
    assert shown[0, :, 50, 150].tolist() == pytest.approx(pictures.FRAME)
    assert shown[0, :, 49, 150].tolist() == pytest.approx([0.45] * 3)


def test_a_part_that_reaches_over_the_edge_can_be_shown():
    shown = pictures.framed(photo_of(torch.zeros(1, 3, 64, 64)), Box(-10, -10, 100, 100))
    assert shown.shape == (1, 3, 256, 256)  # small photos are shown larger


def test_a_difference_is_white_at_four_times_the_noise():
    y = torch.full((1, 3, 4, 4), 0.5)
    gap, white = pictures.difference(y, y + 0.02, 0.01)
    assert white == 0.04
    assert gap.unique().tolist() == pytest.approx([0.5])
    assert pictures.difference(y, y, 0.001)[1] == 4 / 255
    assert pictures.difference(y, y, None)[1] == 0.1


def test_what_is_transparent_is_shown_white():
    alpha = torch.tensor([[[[0.0, 1.0]]]])
    assert pictures.on_white(photo_of(torch.zeros(1, 3, 1, 2), alpha))[0, 0, 0].tolist() == [1.0, 0.0]


def test_small_measurements_are_shown_as_squares_and_large_photos_smaller():
    small = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    big = pictures.enlarged(small)
    assert big.shape == (1, 3, 256, 384)
    assert torch.equal(big[:, :, ::8, ::8], small)
    assert pictures.shown(torch.zeros(1, 3, 2560, 640)).shape == (1, 3, 1280, 320)
    assert pictures.shown(small) is small


def test_what_is_handed_out_says_nothing_of_the_place():
    assert pictures.without_exif(photo_of(torch.zeros(1, 3, 2, 2))).exif == b""
