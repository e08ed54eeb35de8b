"""The augmentations, against loops over examples and pixels."""

import math

import pytest
import torch

from isbench.data.augment import Augmentation, Rotation, Shift, ShiftCutout, rotate
from isbench.errors import Incompatible

CHOICES = [
    Augmentation(),
    Shift(4, "zeros", flip=False),
    Shift(4, "zeros", flip=True),
    Shift(3, "edge", flip=True),
    ShiftCutout(4, "zeros", flip=True, size=6, fill=121),
    Rotation(),
]


def name(choice):
    return "-".join([type(choice).__name__, *map(str, vars(choice).values())])


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def draw(choice, k, seed=0):
    return choice.draw_views(k, torch.Generator().manual_seed(seed), "cpu")


@pytest.mark.parametrize("choice", CHOICES, ids=name)
def test_views_depend_on_the_generator_only(choice):
    torch.manual_seed(1)
    views = draw(choice, 50)
    torch.manual_seed(2)
    assert torch.equal(views, draw(choice, 50))
    assert views.shape == (50, choice.num_parameters) and views.dtype == torch.float32
    if choice.num_parameters:
        assert not torch.equal(views, draw(choice, 50, seed=1))


@pytest.mark.parametrize("choice", CHOICES, ids=name)
def test_apply_is_pure(choice, images):
    views = draw(choice, len(images))
    images_before, views_before = images.clone(), views.clone()
    torch.manual_seed(1)
    first = choice.apply(images, views)
    torch.manual_seed(2)
    assert torch.equal(first, choice.apply(images, views))
    assert torch.equal(images, images_before) and torch.equal(views, views_before)
    assert first.shape == images.shape
    singly = torch.cat([choice.apply(images[i : i + 1], views[i : i + 1]) for i in range(len(images))])
    assert torch.allclose(first.float(), singly.float(), atol=1e-3)


@pytest.mark.parametrize("choice", CHOICES, ids=name)
def test_no_images_stay_none(choice):
    none = torch.empty(0, 3, 12, 9, dtype=torch.uint8)
    assert choice.apply(none, draw(choice, 0)).shape == none.shape


@pytest.mark.parametrize("padding", ["zeros", "edge"])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_moves_pixels_then_mirrors(images, padding, flip):
    choice = Shift(4, padding, flip)
    views = draw(choice, len(images))
    expected = torch.zeros_like(images)
    height, width = images.shape[2:]
    for i, (down, right, mirrored) in enumerate(views.int().tolist()):
        for row in range(height):
            for column in range(width):
                from_row, from_column = row - down, column - right
                if padding == "edge":
                    from_row = min(max(from_row, 0), height - 1)
                    from_column = min(max(from_column, 0), width - 1)
                if 0 <= from_row < height and 0 <= from_column < width:
                    to_column = width - 1 - column if mirrored else column
                    expected[i, :, row, to_column] = images[i, :, from_row, from_column]
    assert torch.equal(choice.apply(images, views), expected)


def test_shift_draws_every_move_and_mirrors_half():
    views = draw(Shift(2, "zeros", flip=True), 20_000)
    for axis in range(2):
        assert torch.bincount(views[:, axis].long() + 2).tolist() == pytest.approx([4000] * 5, abs=300)
    assert views[:, 2].mean().item() == pytest.approx(0.5, abs=0.02)
    assert views[:, 2].unique().tolist() == [0, 1]
    assert not draw(Shift(2, "zeros", flip=False), 100)[:, 2].any()


def test_offset_is_the_distance_moved():
    views = torch.tensor([[3.0, -4.0, 1.0], [0.0, 0.0, 0.0]])
    assert Shift(4, "zeros", flip=True).offset(views).tolist() == [5.0, 0.0]
    assert ShiftCutout(4, "zeros", True, 6, 121).offset(views).tolist() == [5.0, 0.0]
    assert Augmentation().offset(torch.empty(2, 0)) is None
    assert Rotation().offset(torch.zeros(2, 1)) is None


def test_cutout_blanks_one_square(images):
    choice = ShiftCutout(4, "zeros", True, size=6, fill=121)
    views = draw(choice, len(images))
    expected = Shift(4, "zeros", True).apply(images, views)
    for i, (down, across) in enumerate(views[:, 3:].tolist()):
        top, left = math.floor(down * 12) - 3, math.floor(across * 9) - 3
        expected[i, :, max(top, 0) : top + 6, max(left, 0) : left + 6] = 121
    assert torch.equal(choice.apply(images, views), expected)


def test_cutout_centre_reaches_every_pixel():
    centres = (draw(ShiftCutout(4, "zeros", True, 6, 121), 20_000)[:, 3:] * 10).long()
    for axis in range(2):
        assert centres[:, axis].bincount().tolist() == pytest.approx([2000] * 10, abs=200)


def rotate_slowly(image, angle):
    """Rotate (C, H, W) counter-clockwise, pixel by pixel, by bilinear interpolation of the source."""
    channels, height, width = image.shape
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    result = torch.zeros(channels, height, width)
    for row in range(height):
        for column in range(width):
            up, right = middle_row - row, column - middle_column
            # Turning the picture by the angle turns the point it came from by minus the angle.
            from_right = right * math.cos(angle) + up * math.sin(angle)
            from_up = -right * math.sin(angle) + up * math.cos(angle)
            y, x = middle_row - from_up, from_right + middle_column
            for r in (math.floor(y), math.floor(y) + 1):
                for c in (math.floor(x), math.floor(x) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        result[:, row, column] += (1 - abs(y - r)) * (1 - abs(x - c)) * image[:, r, c]
    return result


def test_rotation_agrees_with_a_pixel_loop(images):
    views = draw(Rotation(), 4)
    pairs = zip(images[:4], views[:, 0].tolist(), strict=True)
    expected = torch.stack([rotate_slowly(image, angle) for image, angle in pairs])
    assert torch.allclose(Rotation().apply(images[:4], views), expected, atol=0.01)


def test_rotation_by_quarter_turns_is_exact():
    image = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5)
    for quarters in range(4):
        turned = rotate(image, torch.tensor([quarters * math.pi / 2]))
        assert torch.allclose(turned, image.rot90(quarters, dims=(2, 3)).float(), atol=1e-3)


def test_rotation_angles_are_uniform():
    angles = draw(Rotation(), 20_000)[:, 0]
    assert angles.min() >= 0 and angles.max() < 2 * math.pi + 1e-6
    assert torch.histc(angles, 8, 0, 2 * math.pi).tolist() == pytest.approx([2500] * 8, abs=200)


@pytest.mark.parametrize("choice", CHOICES[1:], ids=name)
def test_images_are_required(choice):
    choice.check((3, 32, 32))
    with pytest.raises(Incompatible) as error:
        choice.check((784, 1))
    assert "augmentation=none" in str(error.value) and "\n" not in str(error.value)
    Augmentation().check((784, 1))


def test_shift_must_leave_something_to_see():
    with pytest.raises(Incompatible, match="augmentation.pixels=8"):
        Shift(8, "zeros", flip=True).check((1, 8, 8))
