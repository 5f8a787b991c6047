"""classic_cache.py: taking over the classic's text files."""

import os
from pathlib import Path

import numpy as np
import pytest

from retraining.bottlenecks import classic_cache
from retraining.bottlenecks.classic_cache import (
    ClassicCache,
    ClassicCacheError,
    UnusableError,
    take_over,
)
from retraining.bottlenecks.store import BottleneckStore
from retraining.photos.dataset import Example, load_dataset

WIDTH = 24


def vector(number):
    return np.random.default_rng(number).uniform(0, 2, WIDTH).astype("f4")


def text(values):
    """As the classic wrote them."""
    return ",".join(str(value) for value in values)


class Setting:
    """Photos that are mere names, their true vectors, a store and a classic cache."""

    def __init__(self, folder, count=40, labels=("roses",)):
        """The labels take turns: with two of them, photo 3 is of the second."""
        self.folder, self.labels = folder, labels
        for label in labels:
            (folder / "photos" / label).mkdir(parents=True)
            (folder / "classic" / label).mkdir(parents=True)
        self.examples, self.computed = [], []
        for number in range(count):
            label = self.label_of(number)
            path = folder / "photos" / label / f"{number:02d}.jpg"
            path.write_bytes(b"photo")
            os.utime(path, (1000, 1000))
            self.examples.append(Example(str(path), label, "training", f"key{number}"))
        self.store = BottleneckStore(folder / "cache", "inception_v3", "f" * 40, WIDTH)

    def label_of(self, number):
        return self.labels[number % len(self.labels)]

    def numbers(self, label):
        """The numbers of the photos of a class."""
        return [n for n in range(len(self.examples)) if self.label_of(n) == label]

    def write(self, number, content=None, suffix="_inception_v3.txt", seconds=2000):
        path = self.folder / "classic" / self.label_of(number) / f"{number:02d}.jpg{suffix}"
        content = text(vector(number)) if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (seconds, seconds))
        return str(path)

    def compute(self, examples):
        self.computed += [example.key for example in examples]
        for example in examples:
            self.store.put(example.key, vector(int(example.key[3:])))

    def run(self, network="inception_v3", examples=None, compute=None):
        cache = ClassicCache(str(self.folder / "classic"), network, WIDTH, self.labels)
        return take_over(self.store, examples or self.examples, cache, compute or self.compute)


@pytest.fixture
def setting(tmp_path):
    made = Setting(tmp_path)
    yield made
    made.store.close()


def fill(setting, **changes):
    for number in range(len(setting.examples)):
        setting.write(number, **changes)


@pytest.mark.parametrize("suffix", ["_inception_v3.txt", ".txt"])
def test_vectors_are_taken_over_bit_for_bit(setting, suffix):
    fill(setting, suffix=suffix)
    counts = setting.run()
    assert (counts.taken, counts.checked, counts.known, counts.absent) == (37, 3, 0, 0)
    assert not counts.skipped
    assert not counts.misfits
    assert not counts.times_are_of_a_copy
    assert len(setting.computed) == 3
    keys = [example.key for example in setting.examples]
    np.testing.assert_array_equal(setting.store.read(keys), [vector(n) for n in range(40)])
    assert setting.store.imported(keys) == set(keys) - set(setting.computed)


def test_a_second_time_there_is_nothing_to_do(setting):
    fill(setting)
    setting.run()
    counts = setting.run(compute=None)
    assert (counts.taken, counts.checked, counts.known) == (0, 0, 40)
    assert len(setting.computed) == 3


def test_a_vector_in_the_store_is_not_replaced(setting):
    fill(setting)
    own = np.ones(WIDTH, "f4")
    setting.store.put("key7", own)
    assert setting.run().known == 1
    np.testing.assert_array_equal(setting.store.read(["key7"])[0], own)
    assert setting.store.imported(["key7"]) == set()


def test_an_interrupted_import_keeps_what_it_took(setting, monkeypatch):
    fill(setting)
    read, calls = ClassicCache.read, []

    def interrupted(self, path):
        calls.append(path)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(ClassicCache, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setting.run()
    setting.store.close()
    setting.store = BottleneckStore(setting.store.path.parent, "inception_v3", "f" * 40, WIDTH)
    counts = setting.run()
    assert counts.known > 20
    assert counts.known + counts.taken + counts.checked == 40


WHOLE = text(vector(3))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not 24 numbers"),
        (WHOLE[: len(WHOLE) // 2], "not 24 numbers"),
        (WHOLE + ",0.5", "not 24 numbers"),
        (WHOLE.rpartition(",")[0] + ",", "something other than numbers"),
        (WHOLE.rpartition(",")[0] + ",1.234567e-", "something other than numbers"),
        ("nan," + WHOLE.partition(",")[2], "not finite"),
        ("1e300," + WHOLE.partition(",")[2], "not finite"),
        ("-0.25," + WHOLE.partition(",")[2], "a negative number"),
        ("rose," + WHOLE.partition(",")[2], "something other than numbers"),
        (b"\xff\xfe" + WHOLE.encode(), "something other than numbers"),
        (b"\x00" * len(WHOLE), "not 24 numbers"),
        ("0" * (32 * WIDTH) + WHOLE, "longer than 24 numbers"),
    ],
)
def test_a_damaged_file_is_skipped_and_named(setting, content, reason):
    fill(setting)
    path = setting.write(3, content)
    counts = setting.run()
    ((found, paths),) = counts.skipped.items()
    assert reason in found
    assert paths == [path]
    assert counts.taken + counts.checked == 39
    assert setting.store.missing(["key3"]) == ["key3"]


@pytest.mark.parametrize("last", ["0.0", "0.3", "1", "2.", "12.5125", "1.234567e-05", "0.020623"])
def test_the_last_number_may_be_short(last):
    found = classic_cache.parse(f"0.5,{last}\r\n".encode(), 2)
    np.testing.assert_array_equal(found, np.array([0.5, float(last)], "f4"))


def test_a_folder_in_place_of_a_file_is_skipped(setting):
    fill(setting)
    path = Path(setting.write(3))
    path.unlink()
    path.mkdir()
    assert setting.run().skipped == {"not a file": [str(path)]}


def test_a_photo_changed_since_is_skipped(setting):
    fill(setting)
    os.utime(setting.examples[3].path, (3000, 3000))
    counts = setting.run()
    assert [len(paths) for paths in counts.skipped.values()] == [1]
    assert list(counts.skipped) == ["older than the photo"]
    # Nor is it taken over later, when it alone is missing.
    assert setting.run().taken == 0
    assert setting.store.missing(["key3"]) == ["key3"]


def test_times_of_copied_photos_say_nothing(setting):
    fill(setting, seconds=500)
    counts = setting.run()
    assert counts.times_are_of_a_copy
    assert counts.taken == 37


@pytest.mark.parametrize(
    ("network", "suffix"),
    [
        ("mobilenet_0.50_224", "_inception_v3.txt"),
        ("mobilenet_0.50_224", ".txt"),
        ("mobilenet_0.50_224", "_mobilenet_0.50_224_quantized.txt"),
        ("mobilenet_0.50_224", "_mobilenet_0.50_192.txt"),
        ("inception_v3", "_mobilenet_0.50_224.txt"),
        ("inception_v3", "_https~~tfhub.dev~google~imagenet~inception_v3~feature_vector~1.txt"),
        ("efficientnet_lite0", "_efficientnet_lite0.txt"),
    ],
)
def test_another_networks_files_are_not_looked_at(setting, network, suffix):
    fill(setting, suffix=suffix)
    counts = setting.run(network)
    assert (counts.taken, counts.absent, setting.computed) == (0, 40, [])


def test_a_mobilenets_files_may_be_negative(setting):
    fill(setting, suffix="_mobilenet_0.50_224.txt")
    setting.write(3, "-0.25," + WHOLE.partition(",")[2], "_mobilenet_0.50_224.txt")
    counts = setting.run("mobilenet_0.50_224")
    assert counts.taken + counts.checked == 40


CLASSES = ("daisy", "dandelion", "lilies", "orchids", "roses", "sunflowers", "tulips")


def with_stale(folder, stale, labels=CLASSES, count=70):
    """A Setting whose stale classes have vectors of other photos in the cache."""
    made = Setting(folder, count, labels)
    for number in range(count):
        made.write(
            number, text(vector(1000 + number if made.label_of(number) in stale else number))
        )
    return made


@pytest.mark.parametrize("stale", [("roses",), ("daisy", "roses"), CLASSES[1:]])
def test_classes_with_vectors_of_other_photos_are_left_out_and_named(tmp_path, stale):
    made = with_stale(tmp_path, stale)
    counts = made.run()
    sound = 70 - 10 * len(stale)
    assert (counts.taken, counts.checked) == (sound - 3 * (7 - len(stale)), 3 * 7)
    assert sorted(misfit.label for misfit in counts.misfits) == sorted(stale)
    for misfit in counts.misfits:
        assert misfit.files == 10
        assert misfit.cosine < 0.9
        assert f"/{misfit.label}/" in misfit.path.replace(os.sep, "/")
    imported = made.store.imported(f"key{n}" for n in range(70))
    assert not imported & {f"key{n}" for label in stale for n in made.numbers(label)}
    for key in {*imported, *made.computed}:
        np.testing.assert_array_equal(made.store.read([key])[0], vector(int(key[3:])))
    made.store.close()


def test_where_no_class_fits_the_network_is_doubted(tmp_path):
    made = with_stale(tmp_path, CLASSES)
    with pytest.raises(ClassicCacheError, match=r"of all 7 classes differ .*cosine 0\.") as caught:
        made.run()
    assert "\n" not in str(caught.value)
    assert "`NetworkSettings.architecture`" in str(caught.value)
    assert made.store.imported(example.key for example in made.examples) == set()
    made.store.close()


def test_a_single_class_that_does_not_fit_ends_no_run(tmp_path):
    """Of the other classes, all vectors may be in the store already."""
    made = with_stale(tmp_path, ("roses",), ("roses",))
    counts = made.run()
    assert (counts.taken, [misfit.label for misfit in counts.misfits]) == (0, ["roses"])
    made.store.close()


def test_one_wrong_vector_in_the_sample_leaves_its_class_out(tmp_path):
    first = with_stale(tmp_path / "first", (), CLASSES[:2])
    first.run()
    sampled = int(first.computed[0][3:])
    other = with_stale(tmp_path / "other", (), CLASSES[:2])
    other.write(sampled, text(vector(1000)))
    counts = other.run()
    assert [misfit.label for misfit in counts.misfits] == [other.label_of(sampled)]
    assert counts.taken == 35 - 3
    np.testing.assert_array_equal(other.store.read([f"key{sampled}"])[0], vector(sampled))
    first.store.close()
    other.store.close()


def test_of_few_photos_all_are_checked(tmp_path):
    made = with_stale(tmp_path, ("roses",), ("roses", "tulips"), count=4)
    counts = made.run()
    assert (counts.taken, counts.checked) == (0, 4)
    assert [misfit.label for misfit in counts.misfits] == ["roses"]
    made.store.close()


def test_a_damaged_file_does_not_count_as_checked(tmp_path):
    made = with_stale(tmp_path, (), ("roses", "tulips"), count=12)
    for number in made.numbers("roses")[:4]:
        made.write(number, "0.5")
    counts = made.run()
    assert counts.checked == 2 + 3
    assert counts.taken == 3
    made.store.close()


def test_a_vector_of_zeros_fits_nothing(tmp_path):
    made = with_stale(tmp_path, (), ("roses", "tulips"), count=6)
    for number in made.numbers("roses"):
        made.write(number, text(np.zeros(WIDTH, "f4")))
    (found,) = made.run().misfits
    assert (found.label, found.cosine) == ("roses", 0.0)
    made.store.close()


def test_huge_numbers_do_not_hide_what_does_not_fit():
    huge = np.full(WIDTH, 3e38, "f4")
    assert classic_cache.cosine(huge, huge) == pytest.approx(1)
    assert classic_cache.cosine(huge, -huge) == pytest.approx(-1)


def test_nothing_is_taken_unchecked(setting):
    fill(setting)
    counts = setting.run(compute=lambda examples: None)  # no photo can be read
    assert (counts.taken, counts.checked) == (0, 0)
    assert len(setting.store.missing(example.key for example in setting.examples)) == 40


def test_a_copy_of_a_photo_may_have_the_file(setting):
    fill(setting)
    copies = [Example(e.path, e.label, e.split, "key1") for e in setting.examples[:2]]
    setting.write(0, "half")
    counts = setting.run(examples=[*copies, *setting.examples[2:]])
    assert counts.taken + counts.checked == 39
    np.testing.assert_array_equal(setting.store.read(["key1"])[0], vector(1))


def test_class_folders_may_be_named_as_the_classics_labels(tmp_path):
    for name in ("roses", "ox eye daisy", "Sun_Flowers", "a b"):
        (tmp_path / name).mkdir()
    labels = ["roses", "Ox-Eye_Daisy", "Sun_Flowers", "A+b", "a&b", "菊"]
    found = classic_cache.class_folders(str(tmp_path), labels)
    names = {label: os.path.relpath(path, tmp_path) for label, path in found.items()}
    assert names == {
        "roses": "roses",
        "Ox-Eye_Daisy": "ox eye daisy",
        "Sun_Flowers": "Sun_Flowers",
        "A+b": "A+b",  # `a b` could be the vectors of either
        "a&b": "a&b",
        "菊": "菊",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UnusableError, match="not a file"):
        ClassicCache(tmp_path, "inception_v3", WIDTH, []).read(tmp_path / "pipe.txt")


def test_all_published_vectors_are_read(shared):
    dataset = load_dataset(str(shared / "flower_photos"), key_of=lambda photo: photo.name)
    folder = shared / "classic_bottlenecks"
    cache = ClassicCache(folder, "inception_v3", 2048, dataset.labels)
    assert len(dataset.examples) == 1500
    for example in dataset.examples:
        path = cache.find(example)
        np.testing.assert_array_equal(cache.read(path), np.loadtxt(path, "f4", delimiter=","))
