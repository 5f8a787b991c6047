"""export.py: which photos calibrate a format."""

from collections import Counter

from retraining.photos.dataset import Example
from retraining.run.export import spread


def examples(**counts):
    return [
        Example(f"{label}/{n}.jpg", label, "training", f"{label}{n}")
        for label, count in counts.items()
        for n in range(count)
    ]


def chosen(most, **counts):
    return Counter(example.label for example in spread(examples(**counts), most))


def test_calibration_takes_as_many_photos_of_each_class():
    assert chosen(30, a=1000, b=50, c=90) == {"a": 10, "b": 10, "c": 10}


def test_large_classes_take_the_share_of_small_ones():
    assert chosen(30, a=1000, b=4, c=1000) == {"a": 13, "b": 4, "c": 13}
    assert chosen(30, a=3, b=4) == {"a": 3, "b": 4}


def test_more_classes_than_photos_leave_some_out():
    counts = {f"class{n}": 2 for n in range(50)}
    assert sum(chosen(20, **counts).values()) == 20


def test_the_photos_of_a_class_are_spread_over_it():
    assert [e.path for e in spread(examples(a=101), 5)] == [f"a/{n}.jpg" for n in range(0, 101, 25)]
