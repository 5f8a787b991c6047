"""notes.py: what happens during a run."""

import logging

from retraining.run.notes import RunNotes, Stopwatch


def test_the_stopwatch_names_each_step():
    watch = Stopwatch()
    watch.lap("first")
    watch.lap("second")
    assert list(watch.seconds) == ["first", "second"]
    assert all(seconds >= 0 for seconds in watch.seconds.values())


def test_a_caveat_is_kept_and_warned_of(caplog):
    notes = RunNotes()
    with caplog.at_level(logging.WARNING):
        notes.add_caveat("drawings, not photos")
    assert notes.caveats == ["drawings, not photos"]
    assert caplog.messages == ["drawings, not photos"]


def test_what_is_kept_is_in_the_users_words(caplog):
    notes = RunNotes(worded=str.upper)
    with caplog.at_level(logging.WARNING):
        notes.add_caveat("drawings")
    assert (notes.caveats, caplog.messages) == (["DRAWINGS"], ["drawings"])
