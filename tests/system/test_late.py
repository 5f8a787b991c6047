"""observer.Late: progress of steps that may be quick."""

import pytest

from retraining.system import observer


class Recorded:
    """A Bar and its Progress, which record what is called."""

    def __init__(self):
        self.calls = []

    def __call__(self, iterable, total=None):
        self.calls.append(("total", total))
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append("end")

    def update(self, n):
        self.calls.append(n)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(observer.time, "monotonic", lambda: now[0])
    return now


def test_quick_steps_show_nothing(clock):
    shown = Recorded()
    with observer.Late(shown) as late:
        clock[0] += 60  # before the first step
        late.update()
        clock[0] += observer.LATE_SECONDS - 0.1
        late.update()
    assert shown.calls == []


def test_slow_steps_show_all_that_are_done_and_then_each(clock):
    shown = Recorded()
    with observer.Late(shown, total=9) as late:
        late.update(3)
        clock[0] += observer.LATE_SECONDS
        late.update(2)
        late.update()
        late.end()
    assert shown.calls == [("total", 9), 5, 1, "end"]
