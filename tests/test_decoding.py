"""Images of every kind that Pillow opens become the square that a viewer shows, or are refused by name."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from isbench.data import decoding
from isbench.data.decoding import read_square
from isbench.errors import OutOfMemory

SIDE = 16
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
DEEP = GREY.astype(np.uint16) * 257  # the same in 16 bits


def write_tiff(path: Path, data: bytes, bits: int, photometric: int = 1, sample_format: int = 1) -> None:
    """Write grey values, which Pillow cannot write in all forms that it reads."""
    strip = 8 + 2 + 10 * 12 + 4
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: strip, 277: 1, 278: SIDE, 279: len(data)}
    tags[339] = sample_format
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data)


def twelve_bits() -> bytes:
    """Pack GREY * 16 as two values in three bytes."""
    first, second = (GREY.flatten()[start::2].astype(np.uint16) * 16 for start in (0, 1))
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


def write_plain_pgm(path: Path) -> None:
    values = (str(round(value * 4095 / 255)) for value in GREY.flatten().tolist())
    path.write_text(f"P2\n{SIDE} {SIDE}\n4095\n" + " ".join(values))


DEEP_FILES = {
    "png": lambda path: Image.fromarray(DEEP).save(path, "PNG"),
    "tiff": lambda path: Image.fromarray(DEEP).save(path, "TIFF"),
    "big-endian tiff": lambda path: Image.fromarray(DEEP.astype(">u2")).save(path, "TIFF"),
    "12-bit tiff": lambda path: write_tiff(path, twelve_bits(), bits=12),
    "tiff whose white is zero": lambda path: write_tiff(path, (65535 - DEEP).tobytes(), bits=16, photometric=0),
    "pgm": lambda path: Image.fromarray(DEEP).save(path, "PPM"),
    "12-bit pgm": lambda path: path.write_bytes(
        b"P5 16 16 4095\n" + np.round(GREY * (4095 / 255)).astype(">u2").tobytes()
    ),
    "plain pgm": write_plain_pgm,
    "colour": lambda path: path.write_bytes(b"P6 16 16 65535\n" + np.repeat(DEEP.astype(">u2"), 3).tobytes()),
}


@pytest.mark.parametrize("write", DEEP_FILES.values(), ids=DEEP_FILES)
def test_more_than_eight_bits_are_scaled(write, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"  # Pillow goes by the content
    write(path)
    assert np.abs(read_square(path, SIDE).astype(int) - GREY).max() <= 1


REFUSED_FILES = {
    "integers": lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path, "TIFF"),
    "floats": lambda path: Image.fromarray((GREY / 255).astype(np.float32)).save(path, "TIFF"),
    "signed": lambda path: write_tiff(path, GREY.astype(np.int16).tobytes(), bits=16, sample_format=2),
    "pfm": lambda path: path.write_bytes(b"Pf\n16 16\n-1.0\n" + (GREY / 255).astype("<f4").tobytes()),
}


@pytest.mark.parametrize("write", REFUSED_FILES.values(), ids=REFUSED_FILES)
def test_grey_without_a_range_is_refused(write, tmp_path: Path) -> None:
    write(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="32 bits or with a sign"):
        read_square(tmp_path / "x.tiff", SIDE)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(suffix: str, orientation: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 48), "blue")
    image.paste("red", (0, 0, 16, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{suffix}", exif=exif, quality=95)
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    expected = np.array(ImageOps.exif_transpose(turned).convert("RGB")).transpose(2, 0, 1)
    offset = (np.array(expected.shape[1:]) - 32) // 2
    expected = expected[:, offset[0] : offset[0] + 32, offset[1] : offset[1] + 32]
    found = read_square(tmp_path / f"x.{suffix}", 32)
    assert (np.abs(found.astype(int) - expected) > 60).mean() < 0.1  # JPEG blurs the edges


def test_a_damaged_exif_block_leaves_the_pixels(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(read_square(tmp_path / "x.png", SIDE)[0], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_is_white(mode: str, tmp_path: Path) -> None:
    """A black drawing whose background is black too, and transparent."""
    ink = GREY > 127
    image = Image.new("L", (SIDE, SIDE))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.where(ink, 255, 0).astype(np.uint8)))
        image.save(tmp_path / "x.png")
    else:  # one value is transparent
        image = Image.fromarray(np.where(ink, 1, 0).astype(np.uint8))
        image = Image.merge("RGB", [image] * 3) if mode == "RGB" else image.convert(mode)
        if mode == "P":
            image.putpalette([0] * 768)
        image.save(tmp_path / "x.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    found = read_square(tmp_path / "x.png", SIDE)
    assert (found[:, ink] <= 1).all() and (found[:, ~ink] == 255).all()


def test_an_opaque_alpha_changes_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    image.convert("RGBA").save(tmp_path / "y.png")
    assert np.array_equal(read_square(tmp_path / "x.png", SIDE), read_square(tmp_path / "y.png", SIDE))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 900)])
def test_a_long_image_is_cropped_before_it_is_enlarged(size: tuple[int, int], tmp_path: Path, monkeypatch) -> None:
    Image.linear_gradient("L").resize(size).save(tmp_path / "x.png")
    resize, areas = Image.Image.resize, []

    def measured(self, size, *arguments, **options):
        areas.append(size[0] * size[1])
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", measured)
    found = read_square(tmp_path / "x.png", 224)
    assert found.shape == (3, 224, 224) and max(areas) <= 224 * 224 * decoding.ELONGATED
    assert 120 <= found.mean() <= 135  # the middle of the gradient


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (300, 31), (64, 64)])
def test_cropping_first_gives_the_same_pixels(size: tuple[int, int], tmp_path: Path, monkeypatch) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = read_square(tmp_path / "x.png", 32).astype(int)
    monkeypatch.setattr(decoding, "ELONGATED", 0)
    assert np.abs(read_square(tmp_path / "x.png", 32) - expected).max() <= 1


def test_a_lack_of_memory_is_not_called_damage(tmp_path: Path, monkeypatch) -> None:
    def fail(*_, **__):
        raise MemoryError

    Image.fromarray(GREY).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(OutOfMemory, match=r"x.png: 16 x 16 pixels are more than the memory holds"):
        decoding.read_images(tmp_path, ["x.png"], SIDE, "remedy")
