"""The label audit of a run."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future

from retraining.bottlenecks.compute import Bottlenecks
from retraining.bottlenecks.vectors import Labelled
from retraining.evaluation import label_audit
from retraining.photos.split import SPLITS, TESTING, VALIDATION
from retraining.run.settings import RunSettings
from retraining.system.background import beside
from retraining.system.text import counted
from retraining.training.head import Head

log = logging.getLogger(__name__)


def start_audit(
    bottlenecks: Bottlenecks, head: Head, settings: RunSettings
) -> Future[list[label_audit.Finding]] | None:
    """Begins to audit the labels of all photos, on a thread of its own; None without an audit.

    The audit must be about as accurate on held-out photos as the trained `head`.
    """
    if not settings.outputs.label_audit:
        return None
    count = sum(map(len, bottlenecks.examples.values()))
    if reason := label_audit.limit(count, len(bottlenecks.labels)):
        log.warning(f"no label audit: {reason}")
        return None
    held_out = Labelled.join([bottlenecks.labelled[part] for part in (VALIDATION, TESTING)])
    reference = head.logits(held_out.vectors).argmax(axis=1) == held_out.targets
    return beside(label_audit.audit, undistorted(bottlenecks), settings.seed, reference)


def end_audit(
    auditing: Future[list[label_audit.Finding]] | None, settings: RunSettings
) -> list[label_audit.Finding] | None:
    """Waits for the Findings of an audit, and logs how many there are; None without an audit."""
    if auditing is None:
        return None
    findings = auditing.result()
    log.info(f"{describe_audit(findings)}: {settings.outputs.label_audit}")
    return findings


def undistorted(bottlenecks: Bottlenecks) -> label_audit.AuditedPhotos:
    """Returns the Photos of all splits: each photo once, without its distorted views."""
    parts = [
        (bottlenecks.examples[part], bottlenecks.labelled[part])
        for part in SPLITS
        if bottlenecks.examples[part]
    ]
    examples = [example for of_split, _ in parts for example in of_split]
    photos = Labelled.join([labelled.first(len(of_split)) for of_split, labelled in parts])
    return label_audit.AuditedPhotos(
        [example.path for example in examples],
        [example.key for example in examples],
        bottlenecks.labels,
        photos.targets,
        photos.vectors,
    )


def describe_audit(findings: Sequence[label_audit.Finding]) -> str:
    """Returns one line that counts the Findings."""
    counts = Counter(finding.reason for finding in findings)
    wrong = counted(counts[label_audit.LABEL], "label looks", "labels look")
    doubles = counted(counts[label_audit.DUPLICATE], "near-duplicate")
    return (
        f"label audit: {wrong} wrong and {counts[label_audit.DOUBT]} doubtful; {doubles} within "
        f"a class, {counts[label_audit.ELSEWHERE]} across classes"
    )
