"""advice.py: how good a model is in words, and what to do next."""

import pytest

from retraining.evaluation.label_audit import DOUBT, DUPLICATE, ELSEWHERE, LABEL, Finding
from retraining.report import advice
from retraining.report.record import evaluations
from tests.records import cross_validated, made_up

LABELS = ["cat", "dog", "owl"]
PATHS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def plain(text):
    return text.translate(
        dict.fromkeys(map(ord, "\N{FIRST STRONG ISOLATE}\N{POP DIRECTIONAL ISOLATE}"))
    )


@pytest.fixture
def record():
    """Four tested photos: three right, and a cat taken for a dog."""
    return made_up(LABELS, PATHS, [0, 0, 1, 2], [0, 1, 1, 2])


@pytest.fixture
def good():
    """A record that leaves nothing to do."""
    found = made_up(LABELS, PATHS, [0, 0, 1, 2], [0, 0, 1, 2], sizes=[])
    found["photos"] = [row | {"training": 100} for row in found["photos"]]
    found["test"]["interval"] = [0.95, 1.0]
    found["calibration"]["expected_calibration_error"] = 0.0
    return found


def steps(record):
    return [plain(what) for what, _ in advice.next_steps(record)]


@pytest.mark.parametrize(
    ("interval", "compared"),
    [
        (
            [0.6, 0.9],
            "60 to 90 correctly (with 95% certainty). That is better than always guessing",
        ),
        ([0.3, 0.9], "30 to 90 correctly (with 95% certainty). That is not clearly better than"),
        ([0.1, 0.4], "10 to 40 correctly (with 95% certainty). That is worse than always guessing"),
    ],
)
def test_the_accuracy_is_set_beside_guessing(record, interval, compared):
    said = plain(advice.verdict(record["test"] | {"interval": interval}))
    assert said.startswith("Of 4 photos that it had never seen, the model labelled 3 correctly.")
    assert compared in said
    assert said.endswith("always guessing cat, which would be right for 50.")


def test_without_test_photos_the_accuracy_is_unknown():
    record = made_up(LABELS, [], [], [])
    assert advice.verdict(record["test"]).startswith("The accuracy of this model is unknown")
    assert steps(record)[0] == "Hold out some photos"
    assert advice.trust(record) == "Unknown: no photos were tested."


def test_a_good_model_leaves_nothing_to_do(good):
    assert steps(good) == []


def test_labels_that_may_be_wrong_are_counted(good):
    reasons = (LABEL, ELSEWHERE, DOUBT, DUPLICATE)
    findings = [Finding("a.jpg", "cat", "dog", 0.9, reason, "b.jpg") for reason in reasons]
    audited = made_up(LABELS, ["a.jpg"], [0], [0], audit=findings)
    assert steps(good | {"audit": audited["audit"]}) == [
        "Look at 2 photos whose label may be wrong"
    ]


def test_the_smallest_class_is_named(good):
    good["photos"][1]["training"] = 19
    assert steps(good) == ["Add photos of dog"]
    good["photos"][2]["training"] = 1
    ((what, why),) = advice.next_steps(good)
    assert plain(what) == "Add photos of owl and 1 other class"
    assert plain(why) == "The model learned owl from only 1 photo."


def test_more_photos_are_advised_where_they_have_helped(good):
    gain = {"from": 500, "to": 1000, "accuracy": 0.03, "interval": [0.01, 0.05]}
    assert steps(good | {"sizes": {"points": [], "gain": gain}}) == ["Add more photos"]


def test_a_wide_interval_asks_for_more_test_photos(good):
    good["test"]["interval"] = [0.9, 1.0]
    ((what, why),) = advice.next_steps(good)
    assert what == "Test on more photos"
    assert why == "A test on 4 photos leaves the accuracy uncertain by 10 points."


def test_probabilities_that_mislead_are_warned_of():
    targets = [0, 1] * 100
    wrong = [1 - t if n % 2 else t for n, t in enumerate(targets)]  # half right, 80 % sure
    record = made_up(["cat", "dog"], ["p.jpg"] * 200, targets, wrong)
    assert "Do not take its probabilities at face value" in steps(record)


def test_five_pieces_of_advice_are_enough(good):
    confused = made_up(LABELS, PATHS, [0, 0, 1, 2], [1, 1, 0, 2])
    findings = [Finding("a.jpg", "cat", "dog", 0.9, LABEL)]
    bad = good | {"confusion": confused["confusion"]}
    bad["audit"] = made_up(LABELS, ["a.jpg"], [0], [0], audit=findings)["audit"]
    bad["photos"][0]["training"] = 1
    gain = {"from": 500, "to": 1000, "accuracy": 0.03, "interval": [0.01, 0.05]}
    bad["sizes"] = {"points": [], "gain": gain}
    bad["test"]["interval"] = [0.5, 1.0]
    bad["calibration"]["expected_calibration_error"] = 0.5
    assert len(steps(bad)) == advice.MOST_ADVICE == 5
    assert steps(bad)[0] == "Do not rely on this model yet"
    assert steps(bad)[1].startswith("Look at 1 photo whose")


@pytest.mark.parametrize(
    ("interval", "answer"),
    [
        ([0.01, 0.05], "Yes, probably"),
        ([-0.02, 0.005], "Hardly"),
        ([-0.01, 0.03], "It is not clear"),
    ],
)
def test_would_more_photos_help(interval, answer):
    gain = {"from": 500, "to": 1000, "accuracy": 0.01, "interval": interval}
    short, why = advice.more_photos(gain)
    assert short.startswith(answer)
    assert "from 500 to 1,000 training photos changed the accuracy by +1.0 percentage points" in why


@pytest.mark.parametrize(
    ("confidence", "said"),
    [
        (0.95, "it is too sure"),
        (0.5, "it is not sure enough"),
        (0.74, "is small"),
        (0.8, "is small"),
    ],
)
def test_trust_in_its_probabilities(confidence, said):
    record = made_up(LABELS, ["p.jpg"] * 100, [0] * 100, [0] * 75 + [1] * 25)
    record["calibration"]["mean_confidence"] = confidence
    assert said in advice.trust(record)


def test_what_four_photos_cannot_tell_is_not_told(record):
    record["calibration"]["mean_confidence"] = 0.95
    assert "the difference is small or may be chance" in advice.trust(record)
    assert "no more than chance explains" in advice.trust(record)
    assert "no larger than chance explains" in advice.hardest(evaluations(record)["test"])
    assert not any("probabilities" in what for what, _ in advice.next_steps(record))


def test_a_model_that_is_too_modest_on_the_whole_but_not_in_any_bin_is_told_without_contradiction():
    record = made_up(LABELS, ["p.jpg"] * 100, [0] * 100, [0] * 75 + [1] * 25)
    record["calibration"] |= {"mean_confidence": 0.5, "expected_calibration_error": 0.0}
    said = advice.trust(record)
    assert "it is not sure enough, on average over all photos. Among" in said
    assert said.endswith(", which is within chance bin by bin.")
    assert "chance explains" not in said


def test_a_class_that_is_harder_than_the_rest_is_named():
    record = made_up(LABELS, ["p.jpg"] * 90, [0] * 40 + [1] * 50, [0] * 40 + [1] * 20 + [2] * 30)
    said = plain(advice.hardest(evaluations(record)["test"]))
    assert said == "Harder than the other classes, by more than chance explains: dog."
    assert any(what.startswith("Compare") for what, _ in advice.next_steps(record))


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ([0] * 20, "always answering cat would be right as often (18 of 20 photos, the model 18)"),
        ([0] * 17 + [1] * 3, "would be right less often, but"),
        ([1] * 17 + [0] * 3, "would be right more often"),
    ],
)
def test_an_accuracy_that_guessing_reaches_is_told(answered, said):
    targets = [0] * 18 + [1] * 2
    record = made_up(["cat", "dog"], ["p.jpg"] * 20, targets, answered)
    record["test"]["guessing"] = {"label": "cat", "accuracy": 0.8 if "less" in said else 0.9}
    lines = advice.doubts(evaluations(record)["test"])
    assert said in lines[0]
    if answered == [0] * 20:
        assert lines[1:] == ["the test photos of dog (0 of 2) got no correct answer"]
    assert advice.next_steps(record)[0][0] == "Do not rely on this model yet"


def test_of_a_clear_result_no_doubt_is_told():
    targets = [0, 1] * 50
    record = made_up(["cat", "dog"], ["p.jpg"] * 100, targets, targets)
    assert advice.doubts(evaluations(record)["test"]) == []


# -- a cross-validation that leads -----------------------------------------------------------


def led(answered):
    """A record of 5 test photos, all answered dog, led by 100 cross-validated ones."""
    paths, targets = [f"{n}.jpg" for n in range(100)], [0, 1] * 50
    validated = cross_validated(paths, targets, answered, 2)
    return made_up(["cat", "dog"], paths[:5], targets[:5], [1] * 5, validated=validated)


def test_the_advice_rests_on_the_cross_validation_that_leads():
    record = led([1 if n < 40 else n % 2 for n in range(100)])  # 20 cats are taken for dogs
    said = {plain(what): plain(why) for what, why in advice.next_steps(record)}
    assert "Do not rely on this model yet" not in said  # as the five test photos alone would say
    assert said["Compare cat with dog"].startswith("20 of the tested photos of cat were mistaken")


def test_a_cross_validation_that_guessing_reaches_is_told():
    (what, why), *_ = advice.next_steps(led([1] * 100))
    assert what == "Do not rely on this model yet"
    assert "always answering cat would be right as often (50 of 100 photos, the model 50)" in why
    assert why.endswith("the cross-validated photos of cat (0 of 50) got no correct answer.")


def test_what_to_expect_agrees_with_the_interval_as_printed():
    guessing = {"label": "cat", "accuracy": 0.2}
    validated = {"interval": [0.4702, 0.70003], "guessing": guessing}
    assert plain(advice.expectation(validated)) == (
        "Of 100 new photos like these, expect 47 to 70 to be right. That is better than always "
        "guessing cat, which would be right for 20."
    )


def test_with_a_cross_validation_no_test_photos_are_asked_for():
    record = led([n % 2 for n in range(100)])
    empty = made_up(["cat", "dog"], [], [], [])
    record |= {name: empty[name] for name in ("test", "predictions", "calibration")}
    assert not any("Hold out" in what for what in steps(record))
