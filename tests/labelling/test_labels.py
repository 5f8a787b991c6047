"""classifier.py: which labels a graph takes, and which it refuses."""

import numpy as np
import pytest

from retraining.labelling.classifier import Classifier
from retraining.labelling.labels import LabelsError, check_order, find_labels, read_labels

OWN = ["-1", "1", "A", "a"]


@pytest.mark.parametrize(
    ("labels", "own", "said"),
    [
        ("1 -1 a A", OWN, "'1' is number 1, and number 2 in the graph"),
        ("-1 1 a A", OWN, "'a' is number 3, and number 4 in the graph"),
        ("-1 1 x A", OWN, "'A' is number 4, and number 3 in the graph"),
        ("-1 1 A a", OWN, None),
        ("minus one A small", OWN, None),
        ("x y Z A", ["x", "y", "A", "z"], "'A' is number 4, and number 3 in the graph"),
        ("Y X", ["x", "y"], "'Y' is number 1, and number 2 in the graph"),
        ("X Y", ["x", "y"], None),
        ("x B b", ["a", "A", "b"], None),  # B may be another name for A
        ("z a- b", ["a", "A", "b"], None),
        ("a __ b", ["a", "_", "b"], None),  # nothing is left of either for a loose comparison
        ("__ a b", ["a", "_", "c"], "'a' is number 2, and number 1 in the graph"),
    ],
)
def test_labels_in_another_order_are_refused(labels, own, said):
    if not said:
        check_order(labels.split(), own)
        return
    with pytest.raises(LabelsError) as caught:
        check_order(labels.split(), own)
    assert said in str(caught.value)


def test_a_graph_whose_own_labels_repeat_needs_a_labels_file(tmp_path):
    graph = tmp_path / "graph.pb"
    with pytest.raises(LabelsError, match="own labels name several classes 'a'; give a labels"):
        find_labels(graph, None, ["a", "b", "a"], [])
    assert find_labels(graph, ("x", "y", "z"), ["a", "b", "a"], []) == ("x", "y", "z")


@pytest.mark.parametrize("count", [999, 1000, 1001])
def test_only_a_list_of_imagenet_repeats_labels(tmp_path, count):
    labels = ["crane", *map(str, range(count - 2)), "crane"]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    if count >= 1000:
        assert read_labels(tmp_path / "labels.txt") == tuple(labels)
    else:
        with pytest.raises(LabelsError, match=r"^line 999 of .* repeats 'crane' of line 1; "):
            read_labels(tmp_path / "labels.txt")


def test_of_classes_with_one_name_the_likeliest_counts(monkeypatch):
    answer = np.array([0.25, 0.125, 0.625], np.float32)
    monkeypatch.setattr(Classifier, "predict", lambda *_: [("x.jpg", answer, None)])
    both = Classifier(None, ("crane", "cup", "crane"))
    (labels,) = both.label("x.jpg")
    assert labels.scores == {"crane": 0.625, "cup": 0.125}
