import colorsys
from itertools import pairwise

import pytest
import torch

from diffusion_policy.model import ModelError
from diffusion_policy.model.image_augmentation import ColorJitter, CropRandomizer, shift_hue


def numbered(n: int, height: int, width: int) -> torch.Tensor:
    """Images whose pixels encode their position."""
    return torch.arange(height * width).float().reshape(1, 1, height, width).expand(n, 3, -1, -1)


def test_center_crop_outside_training() -> None:
    crop = CropRandomizer((2, 3), center_in_eval=True).eval()
    assert crop(numbered(1, 6, 7))[0, 0].tolist() == [[16, 17, 18], [23, 24, 25]]


def test_random_crops_cut_whole_patches_and_reach_every_place() -> None:
    torch.manual_seed(0)
    images = numbered(400, 5, 6)
    crops = CropRandomizer((3, 4), center_in_eval=True).train()(images)
    assert crops.shape == (400, 3, 3, 4)
    corners = crops[:, 0, 0, 0].long()
    assert set(corners.tolist()) == {6 * row + column for row in range(3) for column in range(3)}
    for image, crop, corner in zip(images[:20], crops[:20], corners[:20].tolist(), strict=True):
        row, column = divmod(corner, 6)
        assert torch.equal(crop, image[:, row : row + 3, column : column + 4])


def test_places_follow_the_generator_and_the_option() -> None:
    images = numbered(16, 8, 8)
    free = CropRandomizer((4, 4), center_in_eval=False).eval()
    first, second = (free(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert len({int(corner) for corner in first[:, 0, 0, 0]}) > 1


def test_jitter_runs_only_while_training() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 5, 6) * 2 - 1
    jitter = ColorJitter({"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1})
    changed = jitter.train()(images)
    assert (changed - images).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(jitter.eval()(images), images)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_image_draws_its_own_factor(name: str) -> None:
    torch.manual_seed(1)
    # Dark, weakly colored pixels: nothing reaches the limits of the range.
    images = (0.3 + 0.2 * torch.rand(1, 3, 4, 4)).expand(8, -1, -1, -1) * 2 - 1
    changed = ColorJitter({name: 0.2}).train()(images)
    for first, second in pairwise(changed):
        assert not torch.allclose(first, second)


def test_factors_do_what_their_names_say() -> None:
    torch.manual_seed(1)
    images = (0.3 + 0.2 * torch.rand(6, 3, 4, 4)) * 2 - 1
    rgb = (images + 1) / 2
    luma = torch.tensor([0.2989, 0.587, 0.114]).reshape(1, 3, 1, 1)
    gray = (rgb * luma).sum(1, keepdim=True)
    anchors = {"brightness": torch.zeros(1), "contrast": gray.mean((2, 3), keepdim=True), "saturation": gray}
    for name, anchor in anchors.items():
        changed = (ColorJitter({name: 0.2}).train()(images) + 1) / 2
        # The factor of each image, from all its pixels: new = anchor + factor * (old - anchor).
        old, new = (rgb - anchor).flatten(1), (changed - anchor).flatten(1)
        factor = (old * new).sum(1, keepdim=True) / old.square().sum(1, keepdim=True)
        torch.testing.assert_close(new, factor * old, atol=1e-5, rtol=0)
        assert ((factor > 0.8) & (factor < 1.2)).all()


def test_gray_has_no_saturation_or_hue_to_change() -> None:
    gray = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1) * 2 - 1
    changed = ColorJitter({"saturation": 0.5, "hue": 0.5}).train()(gray)
    torch.testing.assert_close(changed, gray, atol=1e-4, rtol=0)


def test_hue_turns_like_the_standard_library() -> None:
    torch.manual_seed(2)
    rgb = torch.rand(3, 3, 2, 2)
    turns = torch.tensor([0.1, -0.4, 0.5])
    result = shift_hue(rgb, turns.reshape(3, 1, 1, 1))
    for image, turn, new in zip(rgb, turns.tolist(), result, strict=True):
        for old_pixel, new_pixel in zip(image.flatten(1).T.tolist(), new.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*old_pixel)
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            assert new_pixel == pytest.approx(expected, abs=1e-5)


def test_misspelled_and_absurd_strengths_are_refused() -> None:
    with pytest.raises(ModelError, match="no setting 'brightnes'; expected brightness, contrast"):
        ColorJitter({"brightnes": 0.2})
    with pytest.raises(ModelError, match=r"color_jitter.hue is 0.7; expected 0 to 0.5"):
        ColorJitter({"hue": 0.7})
    with pytest.raises(ModelError, match=r"color_jitter.contrast is -0.1"):
        ColorJitter({"contrast": -0.1})


def test_strengths_show_in_the_printed_model() -> None:
    assert repr(ColorJitter({"hue": 0.1, "contrast": 0})) == "ColorJitter(hue=0.1)"


def test_jitter_changes_the_share_of_images_that_it_is_told_to() -> None:
    images = torch.rand(400, 3, 2, 2) * 2 - 1
    strengths = {"brightness": 0.5, "hue": 0.2}
    for p in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        changed = (ColorJitter({**strengths, "p": p}).train()(images) != images).flatten(1).any(1)
        assert changed.float().mean() == pytest.approx(p, abs=0.08)
    torch.manual_seed(1)
    every = ColorJitter({**strengths, "p": 1}).train()(images)
    torch.manual_seed(1)
    assert torch.equal(every, ColorJitter(strengths).train()(images)), "a run without p draws as before"


@pytest.mark.parametrize("wrong", [{"p": 1.1}, {"p": -0.1}, {"p": True}, {"p": "0.8"}, {"brightness": None}])
def test_jitter_that_is_not_a_share_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=rf"color_jitter\.{next(iter(wrong))} is .*; expected 0 to 1"):
        ColorJitter({"hue": 0.1, **wrong})  # type: ignore[dict-item]
