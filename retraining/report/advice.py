"""Puts a record into words: how good the model is, and what to do next."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from retraining.evaluation.label_audit import ELSEWHERE, LABEL
from retraining.report.record import Record

FEW_TRAINING = 20  # photos of a class, as in the warning at the start of a run
WIDE = 0.08  # width of the accuracy's confidence interval above which to give advice
MISJUDGED = 0.1  # expected calibration error from which to give advice
BALANCED = 0.03  # difference of mean confidence and accuracy below which neither is larger
LITTLE = 0.01  # gain in accuracy that is not worth the work
MOST_ADVICE = 5

Advice: TypeAlias = tuple[str, str]  # what to do, why


def verdict(test: Mapping[str, Any]) -> str:
    """Returns one or two sentences on a record's `test`."""
    if not test["photos"]:
        return "How good this model is, is unknown: no photos were held out to test it on."
    low, high = test["interval"]
    guess = test["guessing"]
    if low > guess["accuracy"]:
        compared = "better than"
    elif high < guess["accuracy"]:
        compared = "worse than"
    else:
        compared = "not certainly better than"
    certain = f"{low * 100:.0f} to {high * 100:.0f} of a hundred"
    return (
        f"Of {photos(test['photos'])} it had never seen, the model named {test['correct']} "
        f"rightly. On photos like these it is, with 95% certainty, right in {certain}: "
        f"{compared} always guessing {isolated(guess['label'])}, which would be right in "
        f"{guess['accuracy'] * 100:.0f}."
    )


def expectation(validated: Mapping[str, Any]) -> str:
    """Returns a sentence on a record's `cross_validation`, in whole photos."""
    low, high = validated["interval"]
    return (
        f"Of 100 new photos like these, expect {math.floor(low * 100)} to {math.ceil(high * 100)} "
        f"to be right."
    )


def more_photos(gain: Mapping[str, Any] | None) -> tuple[str, str]:
    """Answers 'would more photos help?' from a record's `sizes.gain`: (short answer, why)."""
    if gain is None:
        return "Unknown", "There were too few photos to try it with fewer."
    low, high = gain["interval"]
    change = f"{gain['accuracy'] * 100:+.1f} points"
    why = (
        f"Going from {gain['from']:,} to {gain['to']:,} training photos changed the accuracy by "
        f"{change} (95% interval {low * 100:+.1f} to {high * 100:+.1f})."
    )
    if low > 0:
        return "Yes, probably", why + " Another doubling usually brings less than the last one."
    if high < LITTLE:
        return "Hardly", why + " Better photos of what is confused help more than more of the same."
    return "It cannot be said", why + " More held-out photos would make this surer."


def next_steps(record: Record) -> list[Advice]:
    """Returns at most MOST_ADVICE things to do next, the most useful first."""
    advisers = (_on_test, _on_audit, _on_confusion, _on_few, _on_sizes, _on_interval, _on_trust)
    advice = [said for adviser in advisers if (said := adviser(record))]
    return advice[:MOST_ADVICE]


def _on_test(record: Record) -> Advice | None:
    if not record["test"]["photos"]:
        return "Hold out some photos", "Run again with a percentage of photos for testing."
    return None


def _on_audit(record: Record) -> Advice | None:
    suspicious = [f for f in record["audit"] or [] if f["reason"] in (LABEL, ELSEWHERE)]
    if suspicious:
        return f"Look at {photos(len(suspicious))} whose label may be wrong", "See below."
    return None


def _on_confusion(record: Record) -> Advice | None:
    wrong = [cell for cell in record["confusion"] if cell["truth"] != cell["answer"]]
    worst = max(wrong, key=lambda cell: cell["photos"], default=None)
    if not worst or worst["photos"] < 2:
        return None
    given, taken = (isolated(record["labels"][worst[side]]) for side in ("truth", "answer"))
    return (
        f"Compare {given} with {taken}",
        f"{worst['photos']} of the tested photos of {given} were taken for {taken}. Are their "
        f"labels right? If so, add photos that show the difference.",
    )


def _on_few(record: Record) -> Advice | None:
    few = [row for row in record["photos"] if row["training"] < FEW_TRAINING]
    if not few:
        return None
    least = min(few, key=lambda row: row["training"])
    label = isolated(least["label"])
    others = f" and of {len(few) - 1} more" if len(few) > 1 else ""
    return (
        f"Add photos of {label}{others}",
        f"It learnt {label} from {photos(least['training'])} only.",
    )


def _on_sizes(record: Record) -> Advice | None:
    gain = record["sizes"]["gain"]
    if gain and gain["interval"][0] > 0:
        return "Add more photos", "Would more photos help? Probably: see below."
    return None


def _on_interval(record: Record) -> Advice | None:
    if (record["cross_validation"] or {}).get("leads"):
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
    if error is None or error < MISJUDGED:
        return None
    return "Do not take its probabilities at their word", trust(record)


def trust(record: Record) -> str:
    """Returns one sentence on a record's calibration."""
    error = record["calibration"]["expected_calibration_error"]
    if error is None:
        return "Unknown: no photos were tested."
    confidence, accuracy = record["calibration"]["mean_confidence"], record["test"]["accuracy"]
    manner = "too sure of itself" if confidence > accuracy else "too modest"
    if abs(confidence - accuracy) < BALANCED:
        manner = "neither too sure of itself nor too modest on the whole"
    return (
        f"On average the model gave its answers {confidence:.0%} and was right in {accuracy:.0%} "
        f"of the cases: it is {manner}. Group by group, the two are {error * 100:.0f} points apart "
        f"(expected calibration error {error:.3f})."
    )


def photos(count: int) -> str:
    """Returns '1 photo', '2 photos' and so on."""
    return f"{count:,} photo" + "s" * (count != 1)


def isolated(label: str) -> str:
    """Isolates the label, so that one written from right to left does not reorder the text."""
    return f"\N{FIRST STRONG ISOLATE}{label}\N{POP DIRECTIONAL ISOLATE}"
