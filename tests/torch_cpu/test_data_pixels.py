"""Images of every kind arrive with the pixels they mean, or are refused; never silently white or black."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerfold.data import Preprocessing, reason_of
from layerfold.errors import DataError
from layerfold.export import Classifier, InputSpec

_RAMP = np.linspace(0, 1, 64).reshape(8, 8)
_GREY = np.rint(_RAMP * 255).astype(np.uint8)


def prepared(channels: int) -> Preprocessing:
    return Preprocessing(input_shape=(channels, 8, 8), mean=(0.0,) * channels, std=(1.0,) * channels, is_resized=False)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def tiff(values: np.ndarray, sample_format: int, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF file of one channel, written by hand: Pillow writes few of the kinds it reads."""
    tags = [
        (256, 3, values.shape[1]),
        (257, 3, values.shape[0]),
        (258, 3, 8 * values.itemsize),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, values.shape[0]),
        (279, 4, values.nbytes),
        (339, 3, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    return head + values.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


_WIDE = np.rint(_RAMP * 65535).astype(np.uint16)
_SCALED = {
    "png16": encode(Image.fromarray(_WIDE), "png"),
    "tiff16": tiff(_WIDE.astype("<u2"), 1),
    "tiff16 by Pillow": encode(Image.fromarray(_WIDE), "tiff"),
    "tiff16, white is zero": tiff((65535 - _WIDE).astype("<u2"), 1, photometric=0),
    "tiff16, big-endian": encode(Image.fromarray(_WIDE.astype(">u2")), "tiff"),
    "jpeg2000, 16 bits": encode(Image.fromarray(_WIDE), "jpeg2000"),
    "pgm of 65535": b"P5 8 8 65535\n" + _WIDE.astype(">u2").tobytes(),
    "pgm of 1000": b"P5 8 8 1000\n" + np.rint(_RAMP * 1000).astype(">u2").tobytes(),
    "tiff, float32": tiff(_RAMP.astype("<f4"), 3),
    "pfm": b"Pf\n8 8\n-1.0\n" + _RAMP[::-1].astype("<f4").tobytes(),
    "png8": encode(Image.fromarray(_GREY), "png"),
    "grey with alpha": encode(Image.fromarray(np.stack([_GREY, 255 - _GREY], -1), "LA"), "png"),
    "colour with alpha": encode(Image.fromarray(np.stack([_GREY] * 3 + [255 - _GREY], -1)), "png"),
    "palette": encode(Image.fromarray(_GREY).convert("P"), "png"),
    "palette, transparent": encode(Image.fromarray(_GREY).convert("P"), "png", transparency=bytes(range(0, 128, 2))),
    "webp": encode(Image.fromarray(np.stack([_GREY] * 3, -1)), "webp", lossless=True),
    "gif of two frames": encode(
        Image.fromarray(_GREY), "gif", save_all=True, append_images=[Image.new("L", (8, 8), 9)]
    ),
    "tiff of two pages": encode(
        Image.fromarray(_GREY), "tiff", save_all=True, append_images=[Image.new("L", (8, 8), 9)]
    ),
    "animated png": encode(Image.fromarray(_GREY), "png", save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
    "turned by EXIF": encode(
        Image.fromarray(_GREY), "png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", _SCALED)
def test_pixels_of_every_kind_are_scaled_by_their_range(kind: str, channels: int) -> None:
    pixels = prepared(channels).pixels(_SCALED[kind])
    assert pixels.shape == (8, 8, channels)
    assert np.abs(pixels.astype(int) - _GREY[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["1", "YCbCr", "CMYK"])
def test_modes_of_eight_bits_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(np.stack([_GREY, 255 - _GREY, _GREY.T], -1)).convert(mode)
    encoded = encode(image, "jpeg" if mode != "1" else "png")
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert np.array_equal(prepared(3).pixels(encoded), expected)
    assert 0 < expected.mean() < 255


_REFUSED: dict[str, tuple[bytes, str]] = {
    "int32": (tiff((_RAMP * 255).astype("<i4"), 2), "32-bit or signed integers"),
    "uint32": (tiff((_RAMP * 4e9).astype("<u4"), 1), "32-bit or signed integers"),
    "int16": (tiff((_RAMP * 2000 - 1000).astype("<i2"), 2), "32-bit or signed integers"),
    "float up to 255": (tiff((_RAMP * 255).astype("<f4"), 3), "float pixels lie in 0..255"),
    "float below 0": (tiff((_RAMP - 0.5).astype("<f4"), 3), "float pixels lie in -0.5..0.5"),
    "float with NaN": (tiff(np.where(_RAMP > 0.5, np.nan, 0).astype("<f4"), 3), "NaN or infinite"),
    "float with infinity": (tiff(np.where(_RAMP > 0.5, np.inf, 0).astype("<f4"), 3), "NaN or infinite"),
    "float64": (tiff(_RAMP.astype("<f8"), 3), ""),
    "empty": (b"", "it is empty"),
    "text": (b"no image at all", "is no image that Pillow can read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no image that Pillow can read"),
    "cut short": (encode(Image.effect_noise((64, 64), 99), "png")[:1500], ""),
    "jpeg cut short": (encode(Image.effect_noise((64, 64), 99), "jpeg")[:900], "truncated"),
    "many pixels": (png(40000, 40000), "more pixels than the 178,956,970"),
    "most pixels": (png(2**31 - 1, 2**31 - 1), "more pixels than"),
    "text bomb": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26), 9))), "too large"),
    "profile bomb": (png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**26), 9))), "too large"),
    "no width": (png(0, 8), ""),
}


@pytest.mark.parametrize("kind", _REFUSED)
def test_pixels_without_a_meaning_are_refused_in_a_few_words(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    encoded, words = _REFUSED[kind]
    path = tmp_path / "x.png"
    path.write_bytes(encoded)
    for source in (encoded, path):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            prepared(3).pixels(source)
        reason = reason_of(caught.value)
        assert words in reason
        assert "\n" not in reason
        assert " at 0x" not in reason
    assert not recwarn.list


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (3, 30000), (65000, 8), (2, 100000)])
def test_line_of_pixels_is_refused_before_it_is_stretched(size: tuple[int, int]) -> None:
    encoded = encode(Image.new("L", size), "png")
    with pytest.raises(ValueError, match="one side would be far too long"):
        Preprocessing(input_shape=(3, 224, 224), mean=(0,) * 3, std=(1,) * 3).pixels(encoded)
    panorama = encode(Image.new("L", (12000, 100)), "png")
    pixels = Preprocessing(input_shape=(3, 64, 64), mean=(0,) * 3, std=(1,) * 3).pixels(panorama)
    assert pixels.shape == (64, 64, 3)


def test_large_photograph_is_no_bomb_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    encoded = encode(Image.new("L", (9500, 9500), 128), "png", compress_level=1)
    pixels = Preprocessing(input_shape=(1, 8, 8), mean=(0,), std=(1,)).pixels(encoded)
    assert set(pixels.ravel()) == {128}
    assert not recwarn.list


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


_PLACES: dict[str, Callable[[Path], Any]] = {
    "pipe": make_pipe,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "nothing": lambda path: None,
    "dangling": lambda path: path.symlink_to("/nowhere"),
}


@pytest.mark.parametrize("name", ["x.jpg", "a\x1b[31m\nb.jpg", os.fsdecode(b"\xff\xfe.jpg")])
@pytest.mark.parametrize("place", _PLACES)
def test_run_refuses_what_is_no_file_at_once_and_on_one_line(place: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    _PLACES[place](path)
    spec = InputSpec(name="x", shape=(1, 3, 8, 8))
    with pytest.raises(DataError, match=r"^--image [^\n\x1b\udcff]+$"):
        Classifier(lambda _: [], spec, prepared(3)).classify([path])


def test_run_gives_a_whole_batch_of_images_and_refuses_answers_that_are_no_numbers(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (8, 8), (80 * (index + 1), 0, 0)).save(tmp_path / f"{index}.png")
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    seen: list[np.ndarray] = []

    def infer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen.append(inputs["x"])
        red = inputs["x"][:, 0, 0, 0]
        return [np.stack([np.log(red), np.zeros(len(red))], 1)]

    classifier = Classifier(infer, InputSpec(name="x", shape=(2, 3, 8, 8)), prepared(3))
    assert len(classifier.classify(paths)) == 3
    # Zeros in place of the missing image would be another input than any that the network was made for.
    assert min(float(batch[:, 0].min()) for batch in seen) > 0.3
    Image.new("RGB", (8, 8)).save(paths[1])
    with np.errstate(divide="ignore"), pytest.raises(DataError, match=r"1\.png: the network's answer is not finite"):
        classifier.classify(paths)
