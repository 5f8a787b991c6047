"""reader.py: decoding, resizing, distortions."""

import os
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from retraining.graphs.preprocessing import Preprocessing, PreprocessingError, resize_bilinear
from retraining.photos.reader import Distortions, ImageError, ImageReader
from retraining.photos.registry import hash_file

PIXELS = Preprocessing((20, 30), 128.0, 64.0)
KEY = "da39a3ee5e6b4b0d3255bfef95601890afd80709"  # of no image: for what needs no file


@pytest.fixture(scope="module")
def reader():
    return ImageReader(PIXELS)


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "noise.jpg"
    Image.fromarray(pixels).save(path, quality=90)
    return path


def test_a_jpeg_is_decoded_and_resized_as_tensorflow_does_it(reader, jpeg):
    pixels = tf.io.decode_jpeg(jpeg.read_bytes(), channels=3)
    resized = tf.raw_ops.ResizeBilinear(images=tf.cast(pixels, tf.float32)[None], size=(20, 30))
    expected = (resized.numpy() - 128.0) * np.float32(1 / 64)
    np.testing.assert_array_equal(reader.read(jpeg), expected)
    # A precise decoder gives other pixels, so the test above can tell.
    precise = tf.io.decode_jpeg(jpeg.read_bytes(), channels=3, dct_method="INTEGER_ACCURATE")
    assert (precise.numpy() != pixels.numpy()).any()


def test_a_png_has_its_exact_pixels(reader, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    found = reader.read(tmp_path / "exact.png")
    np.testing.assert_array_equal(found[0], (pixels - np.float32(128)) / np.float32(64))


def test_the_name_does_not_matter(reader, jpeg, tmp_path):
    (tmp_path / "wrong.png").write_bytes(jpeg.read_bytes())
    np.testing.assert_array_equal(reader.read(tmp_path / "wrong.png"), reader.read(jpeg))


def test_a_cmyk_jpeg_is_read(reader, tmp_path):
    Image.new("CMYK", (40, 40), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert reader.read(tmp_path / "cmyk.jpg").shape == (1, 20, 30, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; if a cloud such as OneDrive keeps the photo, download it first"),
        (b"some text", "is not an image of a known format"),
        (b"\xff\xd8\xff\xe0 broken", "is"),
        (b"\x89PNG\r\n\x1a\n broken", "is"),
    ],
)
def test_a_file_that_is_no_image_says_so(reader, tmp_path, content, reason):
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        reader.read(tmp_path / "bad.jpg")


def test_a_name_that_cannot_be_one_says_so(reader):
    with pytest.raises(ImageError, match="cannot be read"):
        reader.read("a\0b.jpg")


def test_a_missing_file_says_so(reader, tmp_path):
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        reader.read(tmp_path / "nothing.jpg")


def test_views_are_repeatable_and_differ(reader, jpeg):
    distortions = Distortions(True, 10, 10, 20, views=4, seed=1)
    first = reader.read(jpeg, hash_file(jpeg), distortions)
    assert first.shape == (5, 20, 30, 3)
    np.testing.assert_array_equal(first, reader.read(jpeg, hash_file(jpeg), distortions))
    np.testing.assert_array_equal(first[:1], reader.read(jpeg))
    assert len({view.tobytes() for view in first}) == 5
    other = reader.read(jpeg, hash_file(jpeg), Distortions(True, 10, 10, 20, views=4, seed=2))
    assert (other[1:] != first[1:]).any(axis=(1, 2, 3)).all()


def test_flip_mirrors_about_half_of_the_views(reader, jpeg):
    plain, *views = reader.read(jpeg, hash_file(jpeg), Distortions(flip_left_right=True, views=40))
    mirrored = [np.array_equal(view, plain[:, ::-1]) for view in views]
    unchanged = [np.array_equal(view, plain) for view in views]
    assert sum(mirrored) + sum(unchanged) == 40
    assert 10 <= sum(mirrored) <= 30


def test_brightness_scales_the_pixels_within_its_reach(reader, jpeg):
    plain, *views = (
        reader.read(jpeg, hash_file(jpeg), Distortions(random_brightness=30, views=20)) * 64 + 128
    )
    factors = [float(view.sum() / plain.sum()) for view in views]
    assert min(factors) >= 0.7 - 1e-4
    assert max(factors) <= 1.3 + 1e-4
    assert max(factors) - min(factors) > 0.2
    np.testing.assert_allclose(views[0], plain * factors[0], rtol=1e-3, atol=1e-2)


def test_crop_takes_a_window_of_the_enlarged_image(reader, jpeg):
    pixels = tf.cast(tf.io.decode_jpeg(jpeg.read_bytes(), channels=3), tf.float32)[None]
    large = tf.raw_ops.ResizeBilinear(images=pixels, size=(30, 45)).numpy()[0]
    view = reader.read(jpeg, hash_file(jpeg), Distortions(random_crop=50, views=1))[1] * 64 + 128
    windows = [
        (top, left)
        for top in range(11)
        for left in range(16)
        if np.abs(large[top : top + 20, left : left + 30] - view).max() < 1e-3
    ]
    assert len(windows) == 1


def test_each_distortion_counts_in_the_key():
    kinds = [
        Distortions(flip_left_right=True),
        Distortions(random_crop=5),
        Distortions(random_scale=5),
        Distortions(random_brightness=5),
        Distortions(random_brightness=5, seed=1),
    ]
    keys = {kind.view_key(KEY, view) for kind in kinds for view in range(2)}
    assert len(keys) == 10
    assert all(kind for kind in kinds)
    assert not Distortions(views=3)


# -- every JPEG people have ------------------------------------------------------------------


def photo(width=160, height=120):
    """A smooth picture, which all decoders see nearly alike."""
    down, across = np.mgrid[0:height, 0:width]
    channels = [255 * down / height, 255 * across / width, 128 + 0 * down]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def mean_difference(reader, path, expected):
    """In pixel values of 0..255, between a file as read and an array as resized."""
    expected = resize_bilinear(np.asarray(expected.convert("RGB")), reader.size)
    return np.abs(reader.read(path)[0] * 64 + 128 - expected).mean()


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ({"quality": 95}, "RGB"),
        ({"progressive": True}, "RGB"),
        ({"quality": 95}, "L"),
        ({"quality": 95}, "CMYK"),
        ({"subsampling": "4:1:1"}, "RGB"),
        ({"subsampling": "4:4:4", "restart_marker_blocks": 3}, "RGB"),
    ],
)
def test_kinds_of_jpeg(reader, tmp_path, settings, mode):
    image = photo(161, 119).convert(mode)
    image.save(tmp_path / "a.jpg", **settings)
    assert mean_difference(reader, tmp_path / "a.jpg", image) < 3


def test_cmyk_without_adobes_marker_is_not_inverted(reader, tmp_path):
    """Pillow writes Adobe's marker, and with it the inks inverted; a file may have neither."""
    image = Image.new("CMYK", (64, 48), (255, 0, 0, 0))  # cyan
    inverted = Image.merge("CMYK", [band.point(lambda v: 255 - v) for band in image.split()])
    inverted.save(tmp_path / "b.jpg", quality=95)
    content = (tmp_path / "b.jpg").read_bytes()
    at = content.index(b"\xff\xee")
    (tmp_path / "b.jpg").write_bytes(content[:at] + content[at + 16 :])
    assert content[at + 4 : at + 9] == b"Adobe"
    image.save(tmp_path / "a.jpg", quality=95)
    for name in ("a.jpg", "b.jpg"):
        red, green, blue = reader.read(tmp_path / name)[0].mean(axis=(0, 1)) * 64 + 128
        assert (red, green, blue) == pytest.approx((0, 255, 255), abs=12), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(reader, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert mean_difference(reader, tmp_path / "a.jpg", ImageOps.exif_transpose(image)) < 3
    views = reader.read(tmp_path / "a.jpg", hash_file(tmp_path / "a.jpg"), Distortions(True))
    np.testing.assert_allclose(views[0], reader.read(tmp_path / "a.jpg")[0], atol=1e-5)


def test_an_upright_photo_has_the_classics_pixels_to_the_bit(reader, jpeg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    content = jpeg.read_bytes()
    block = b"Exif\0\0" + exif.tobytes()[6:]
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    np.testing.assert_array_equal(reader.read(tmp_path / "a.jpg"), reader.read(jpeg))


def test_garbage_behind_a_photo_does_no_harm(reader, jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg.read_bytes() + b"garbage" * 99)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.jpg"), reader.read(jpeg))


def test_a_photo_whose_end_is_missing_is_taken_if_half_is_there(reader, tmp_path):
    photo(400, 300).save(tmp_path / "a.jpg", quality=95)
    whole, content = reader.read(tmp_path / "a.jpg"), (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 4 // 5])
    found = reader.read(tmp_path / "a.jpg")
    np.testing.assert_allclose(found[0, :12], whole[0, :12], atol=0.1)
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 5])
    with pytest.raises(ImageError, match="broken image"):
        reader.read(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(1, 1), (20_000, 200), (50, 5000)])
def test_odd_shapes(reader, tmp_path, size):
    for name in ("a.jpg", "a.png"):
        photo(*size).save(tmp_path / name, quality=95)
        assert mean_difference(reader, tmp_path / name, photo(*size)) < 3


def test_too_large_an_image_is_refused(tmp_path):
    small = ImageReader(PIXELS, max_pixels=160 * 120 - 1)
    for name in ("a.jpg", "a.png"):
        photo().save(tmp_path / name)
        with pytest.raises(ImageError, match="160 x 120 pixels, more than"):
            small.read(tmp_path / name)


def test_a_pipe_is_not_opened(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="is a pipe"):
        reader.read(tmp_path / "pipe.jpg")


SUFFIXES = (".jpg", ".png", ".gif", ".webp", ".tiff", ".bmp")


def read_mutated(reader, folder, suffix, seed, count):
    """Reads mutations of a file; returns how many were read and the reasons of the others."""
    photo().save(folder / f"a{suffix}")
    content, rng = (folder / f"a{suffix}").read_bytes(), np.random.default_rng(seed)
    read, reasons = 0, []
    for mutated in mutations(content, rng, count):
        (folder / "mutated").write_bytes(mutated)
        try:
            found = reader.read(folder / "mutated")
        except ImageError as error:
            reasons.append(str(error))
        else:
            read += 1
            assert found.shape == (1, 20, 30, 3)
            assert np.isfinite(found).all()
    return read, reasons


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mutated_file_is_read_or_refused(reader, tmp_path, suffix):
    read, reasons = read_mutated(reader, tmp_path, suffix, seed=0, count=60)
    assert read
    assert reasons
    assert not any("\n" in reason for reason in reasons)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_thousands_of_mutated_files_are_read_or_refused(reader, tmp_path, suffix):
    read, reasons = read_mutated(reader, tmp_path, suffix, seed=1, count=1500)
    assert read + len(reasons) == 1500
    assert not any("\n" in reason for reason in reasons)


def mutations(content, rng, count):
    """Cuts, flipped bits, doubled and overwritten chunks of a file's bytes."""
    for _ in range(count):
        start, end = sorted(rng.integers(len(content), size=2))
        kind = rng.integers(4)
        if kind == 0:
            yield content[:start]
        elif kind == 1:
            yield content[:end] + content[start:]
        elif kind == 2:
            yield content[:start] + rng.bytes(8) + content[start + 8 :]
        else:
            changed = np.frombuffer(content, np.uint8).copy()
            changed[rng.integers(len(content), size=4)] ^= rng.integers(1, 256, 4, np.uint8)
            yield changed.tobytes()


def test_pixels_may_be_scaled_per_channel(reader, jpeg, tmp_path):
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    per_channel = ImageReader(Preprocessing((20, 30), mean, std))
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    for path in (jpeg, tmp_path / "grey.png"):
        pixels = reader.read(path) * np.float32(64) + np.float32(128)
        np.testing.assert_allclose(per_channel.read(path), (pixels - mean) / std, atol=1e-5)


def test_three_equal_numbers_are_as_one(reader, jpeg):
    per_channel = ImageReader(Preprocessing((20, 30), (128.0,) * 3, (64.0,) * 3))
    np.testing.assert_array_equal(per_channel.read(jpeg), reader.read(jpeg))


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("kernel", "resizes images by legacy_bilinear, antialiased_cubic, not by bicubic"),
        ("orientation", "turns images by exif, not bicubic"),
    ],
)
def test_pixels_that_cannot_be_made_are_refused(field, reason):
    with pytest.raises(PreprocessingError, match=reason):
        ImageReader(replace(PIXELS, **{field: "bicubic"}))
