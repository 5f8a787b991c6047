"""Puts a record into words: how good the model is, and what to do next."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

from retraining.evaluation.cross_validation import of_a_hundred
from retraining.evaluation.label_audit import ELSEWHERE, LABEL
from retraining.metrics.classification import BINS, Z, chance_of_at_least, chance_of_at_most
from retraining.photos.split import SPLITS, TRAINING
from retraining.report.record import Record, evaluations, leading
from retraining.system.addresses import dataset_name
from retraining.system.text import counted, some

FEW_TRAINING = 20  # photos of a class, as in the warning at the start of a run
WIDE = 0.08  # width of the accuracy's confidence interval above which to give advice
MISJUDGED = 0.1  # expected calibration error from which to give advice
BALANCED = 0.03  # difference of mean confidence and accuracy below which neither is larger
LITTLE = 0.01  # gain in accuracy that is not worth the work
UNLIKELY = 0.05  # probability below which chance does not explain a difference
MOST_ADVICE = 5

Advice: TypeAlias = tuple[str, str]  # what to do, why


def verdict(test: Mapping[str, Any]) -> str:
    """Returns two or three sentences on a record's `test`."""
    if not test["photos"]:
        return "The accuracy of this model is unknown: no photos were held out to test it."
    low, high = test["interval"]
    return (
        f"Of {photos(test['photos'])} that it had never seen, the model labelled {test['correct']} "
        f"correctly. Of 100 photos like these, expect it to label {low * 100:.0f} to "
        f"{high * 100:.0f} correctly (with 95% certainty). {_beside_guessing(test)}"
    )


def expectation(validated: Mapping[str, Any]) -> str:
    """Returns two sentences on a record's `cross_validation`, in whole photos."""
    low, high = of_a_hundred(*validated["interval"])
    return (
        f"Of 100 new photos like these, expect {low} to {high} to be right. "
        f"{_beside_guessing(validated)}"
    )


def _beside_guessing(evaluation: Mapping[str, Any]) -> str:
    low, high = evaluation["interval"]
    guess = evaluation["guessing"]
    right = round(guess["accuracy"] * 100)
    if low > guess["accuracy"]:
        compared = "better than"
    elif high < guess["accuracy"]:
        compared = "worse than"
    else:
        compared = "not clearly better than"
    return (
        f"That is {compared} always guessing {isolated(guess['label'])}, which would be right "
        f"for {right if right >= 1 else 'less than 1'}."
    )


def more_photos(gain: Mapping[str, Any] | None) -> tuple[str, str]:
    """Answers 'would more photos help?' from a record's `sizes.gain`: (short answer, why)."""
    if gain is None:
        return (
            "Unknown",
            "The run did not train on fewer photos to compare: there were too few photos for it, "
            "or so many photos and classes that it would take too long.",
        )
    low, high = gain["interval"]
    change = f"{gain['accuracy'] * 100:+.1f} percentage points"
    why = (
        f"Going from {gain['from']:,} to {gain['to']:,} training photos changed the accuracy by "
        f"{change} (95% interval {low * 100:+.1f} to {high * 100:+.1f})."
    )
    if low > 0:
        return "Yes, probably", why + " Another doubling usually brings less than the last one."
    if high < LITTLE:
        return (
            "Hardly",
            why + " Better photos of confused classes help more than many more photos.",
        )
    return "It is not clear", why + " More held-out photos would give a clearer answer."


def doubts(evaluation: Mapping[str, Any], of: str = "test photos") -> list[str]:
    """Returns lines on what an accuracy hides, from one of a record's `evaluations`.

    They tell that guessing does as well, and which classes are never answered right. `of` names
    the photos.
    """
    lines = []
    if evaluation["photos"] and (guessed := _guessing(evaluation)):
        lines.append(guessed)
    never = [row for row in evaluation["classes"] if row["photos"] and not row["correct"]]
    if never:
        named = some([f"{row['label']} (0 of {row['photos']})" for row in never])
        lines.append(f"the {of} of {named} got no correct answer")
    return lines


def warnings(record: Record) -> list[str]:
    """Returns the `doubts` about the accuracy that leads."""
    lead = leading(record)
    evaluation = evaluations(record).get(lead)
    of = "test photos" if lead == "test" else "cross-validated photos"
    return doubts(evaluation, of) if evaluation else []


def _guessing(evaluation: Mapping[str, Any]) -> str | None:
    """Returns a line that compares with guessing, if the model is not clearly better."""
    guess, total = evaluation["guessing"], evaluation["photos"]
    if evaluation["interval"][0] > guess["accuracy"]:
        return None
    right = round(guess["accuracy"] * total)
    if right == evaluation["correct"]:
        compared = "would be right as often"
    elif right > evaluation["correct"]:
        compared = "would be right more often"
    else:
        compared = "would be right less often, but the difference may be chance"
    return (
        f"the model is not clearly better than guessing: always answering {guess['label']} "
        f"{compared} ({right} of {photos(total)}, the model {evaluation['correct']})"
    )


def hardest(evaluation: Mapping[str, Any]) -> str:
    """Returns one sentence on the classes that have fewer right answers than chance explains.

    Takes one of a record's `evaluations`.
    """
    tested = [row for row in evaluation["classes"] if row["photos"]]
    correct, total = evaluation["correct"], evaluation["photos"]
    harder = [
        row["label"]
        for row in tested
        if len(tested) * chance_of_at_most(row["correct"], row["photos"], correct, total) < UNLIKELY
    ]
    if not harder:
        return "The differences between the classes are no larger than chance explains."
    named = some([isolated(name) for name in harder])
    return f"Harder than the other classes, by more than chance explains: {named}."


def next_steps(record: Record) -> list[Advice]:
    """Returns at most MOST_ADVICE things to do next, the most useful first."""
    advisers = (
        _on_test,
        _on_guessing,
        _on_audit,
        _on_confusion,
        _on_few,
        _on_sizes,
        _on_interval,
        _on_trust,
    )
    advice = [said for adviser in advisers if (said := adviser(record))]
    return advice[:MOST_ADVICE]


def _on_test(record: Record) -> Advice | None:
    if record["test"]["photos"] or leading(record) != "test":
        return None
    if not option(record, "testing_percentage", "SplitOptions.testing"):
        return "Hold out some photos", "Run again with a percentage of photos for testing."
    return "Add photos", "There were too few photos to hold any out for a test."


def _on_guessing(record: Record) -> Advice | None:
    lines = warnings(record)
    if not lines:
        return None
    why = "; ".join(lines)
    return "Do not rely on this model yet", f"{why[0].upper()}{why[1:]}."


def _on_audit(record: Record) -> Advice | None:
    suspicious = [f for f in record["audit"] or [] if f["reason"] in (LABEL, ELSEWHERE)]
    if suspicious:
        return (
            f"Look at {photos(len(suspicious))} whose label may be wrong",
            "The section on labels below shows them.",
        )
    return None


def _on_confusion(record: Record) -> Advice | None:
    lead = evaluations(record).get(leading(record), {"confusion": []})
    wrong = [cell for cell in lead["confusion"] if cell["truth"] != cell["answer"]]
    worst = max(wrong, key=lambda cell: cell["photos"], default=None)
    if not worst or worst["photos"] < 2:
        return None
    mistakes, cells = sum(cell["photos"] for cell in wrong), len(record["labels"])
    cells *= cells - 1
    if cells * chance_of_at_least(worst["photos"], mistakes, 1 / cells) >= UNLIKELY:
        return (
            f"Look at the {mistakes} mistakes",
            "Are their labels right? No two classes are confused more often than chance explains.",
        )
    given, taken = (isolated(record["labels"][worst[side]]) for side in ("truth", "answer"))
    return (
        f"Compare {given} with {taken}",
        f"{worst['photos']} of the tested photos of {given} were mistaken for {taken}. Are their "
        f"labels right? If so, add photos that show the difference.",
    )


def _on_few(record: Record) -> Advice | None:
    few = [row for row in record["photos"] if learnt(record, row) < FEW_TRAINING]
    if not few:
        return None
    least = fewest(record)
    label = isolated(least["label"])
    others = f" and {counted(len(few) - 1, 'other class', 'other classes')}" if few[1:] else ""
    return (
        f"Add photos of {label}{others}",
        f"The model learned {label} from only {photos(learnt(record, least))}.",
    )


def fewest(record: Record) -> Mapping[str, Any]:
    """Returns the row of `photos` of the class that the model learnt from the fewest photos."""
    row: Mapping[str, Any] = min(record["photos"], key=lambda row: learnt(record, row))
    return row


def untested(validated: Mapping[str, Any]) -> str:
    """Returns a sentence on the classes that a cross-validation could not predict; '' if none."""
    alone = [isolated(row["label"]) for row in validated["classes"] if not row["photos"]]
    if not alone:
        return ""
    return f"Not among them: {some(alone)}. All photos of such a class show one subject. "


def learnt(record: Record, row: Mapping[str, Any]) -> int:
    """Returns how many photos of a class the model in the file learnt from."""
    parts = SPLITS if record["final_fit"] == "all" else (TRAINING,)
    return sum(row[part] for part in parts)


def _on_sizes(record: Record) -> Advice | None:
    gain = record["sizes"]["gain"]
    if gain and gain["interval"][0] > 0:
        return "Add more photos", "More photos would probably help: see below."
    return None


def _on_interval(record: Record) -> Advice | None:
    if leading(record) != "test":
        return None  # all photos count already
    interval = record["test"]["interval"]
    if interval and interval[1] - interval[0] > WIDE:
        return (
            "Test on more photos",
            f"A test on {photos(record['test']['photos'])} leaves the accuracy uncertain by "
            f"{(interval[1] - interval[0]) * 100:.0f} points.",
        )
    return None


def _on_trust(record: Record) -> Advice | None:
    error = record["calibration"]["expected_calibration_error"]
    if error is None or error < MISJUDGED or not _misjudged(record)[1]:
        return None
    return "Do not take its probabilities at face value", trust(record)


def _misjudged(record: Record) -> tuple[bool, bool]:
    """Returns whether the mean confidence, and the calibration error, are off by more than chance.

    If every probability were exactly right, the right answers would vary with the variance
    p (1 - p) of each photo, and the error of a group would be half-normal.
    """
    bins: dict[int, float] = defaultdict(float)
    for photo in record["predictions"]:
        sure = photo["likeliest"][0]["probability"]
        bins[min(BINS - 1, max(0, math.ceil(sure * BINS) - 1))] += sure * (1 - sure)
    total, variance = record["test"]["photos"], sum(bins.values())
    gap = abs(record["calibration"]["mean_confidence"] - record["test"]["accuracy"])
    error = record["calibration"]["expected_calibration_error"]
    expected = sum(math.sqrt(2 / math.pi * part) for part in bins.values()) / total
    spread = math.sqrt((1 - 2 / math.pi) * variance) / total
    return gap > Z * math.sqrt(variance) / total, error > expected + Z * spread


def trust(record: Record) -> str:
    """Returns two sentences on a record's calibration."""
    error = record["calibration"]["expected_calibration_error"]
    if error is None:
        return "Unknown: no photos were tested."
    confidence, accuracy = record["calibration"]["mean_confidence"], record["test"]["accuracy"]
    on_the_whole, by_group = _misjudged(record)
    manner = "it is too sure of itself" if confidence > accuracy else "it is not sure enough"
    certain = "more than chance explains" if by_group else "no more than chance explains"
    if not on_the_whole or abs(confidence - accuracy) < BALANCED:
        manner = "the difference is small or may be chance"
    elif not by_group:
        manner += ", on average over all photos"
        certain = "which is within chance bin by bin"
    return (
        f"For the {photos(record['test']['photos'], 'test photo')}, the model gave its answers a "
        f"probability of {confidence:.0%} on average, and {accuracy:.0%} of them were right: "
        f"{manner}. Among answers of similar probability, the two differ by {error * 100:.0f} "
        f"points on average (expected calibration error {error:.3f}), {certain}."
    )


def option(record: Record, flag: str, setting: str) -> Any:
    """Returns an option of the run; its name in the record is the flag or the setting."""
    options = record["options"]
    return options.get(flag, options.get(setting))


def title(record: Record) -> str:
    """Returns what was trained: the folder's name, classes, photos and network."""
    network = record["network"]
    networks = " + ".join(
        network_title(network[key]) for key in ("name", "second_name") if key in network
    )
    data = dataset_name(str(option(record, "image_dir", "PhotoSettings.image_dir") or ""))
    counts = f"{len(record['labels'])} classes, {photos(photo_count(record))}, {networks}"
    return f"{isolated(data)}: {counts}" if data else counts


def photo_count(record: Record) -> int:
    """Returns the number of photos in all splits."""
    return sum(row[part] for row in record["photos"] for part in SPLITS)


def network_title(name: str) -> str:
    """Returns the name of a network as its authors write it, or as it is."""
    spelled = {
        "inception_v3": "Inception-v3",
        "efficientnet_lite": "EfficientNet-Lite",
        "mobilenet_": "MobileNet ",
        "vgg16": "VGG16",
        "dinov2_": "DINOv2 ",
    }
    for start, text in spelled.items():
        if name.startswith(start):
            return text + name.removeprefix(start)
    return name


def photos(count: int, noun: str = "photo") -> str:
    """Returns '1 photo', '2 photos' and so on."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def isolated(label: str) -> str:
    """Isolates the label, so that one written from right to left does not reorder the text."""
    return f"\N{FIRST STRONG ISOLATE}{label}\N{POP DIRECTIONAL ISOLATE}"
