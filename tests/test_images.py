"""images.py: decoding, resizing, distortions."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retraining.dataset import hash_file
from retraining.images import Distortions, ImageError, ImageReader, decode_with_pillow

KEY = "da39a3ee5e6b4b0d3255bfef95601890afd80709"  # of no image: for what needs no file


@pytest.fixture(scope="module")
def reader():
    return ImageReader((20, 30), mean=128.0, std=64.0)


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


def encoded(image, **settings):
    buffer = io.BytesIO()
    image.save(buffer, **settings)
    return buffer.getvalue()


def test_transparency_is_over_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 255, 255))
    pixels = decode_with_pillow(encoded(image, format="PNG"))
    assert pixels.shape == (4, 4, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[2, 1].tolist() == [0, 0, 255]


def test_grey_and_palette_become_rgb():
    grey = Image.new("L", (3, 2), 77)
    assert decode_with_pillow(encoded(grey, format="PNG")).tolist() == [[[77] * 3] * 3] * 2
    palette = Image.new("RGB", (3, 2), (10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode_with_pillow(encoded(palette, format="PNG"))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_greyscale_keeps_its_brightness(mode):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    deep = {"I;16": grey * np.uint16(257), "I": grey * np.int32(257), "F": grey / np.float32(255)}
    image = Image.fromarray(deep[mode])
    assert image.mode == mode
    found = decode_with_pillow(encoded(image, format="PNG" if mode == "I;16" else "TIFF"))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, axis=2))


def test_a_cmyk_jpeg_is_read(reader, tmp_path):
    Image.new("CMYK", (40, 40), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert reader.read(tmp_path / "cmyk.jpg").shape == (1, 20, 30, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an image of a known format"),
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
