"""background.py: threads that run beside others, and threads that ask together."""

import pytest

from retraining.system.background import Together, beside


def test_a_future_has_the_result_or_the_error():
    assert beside(lambda a, b: a + b, 1, 2).result() == 3
    with pytest.raises(ZeroDivisionError):
        beside(lambda: 1 / 0).result()


def collatz(together, member, ended):
    """Halves or triples its number, as `answer` tells, until it is 1; appends (member, steps)."""
    steps = 0
    with together.member(member) as ask:
        while ask() != 1:
            steps += 1
    ended.append((member, steps))


def test_members_are_answered_together_until_each_has_ended():
    numbers, calls, ended = {"a": 3, "b": 1, "c": 8}, [], []

    def answer(members):
        calls.append(list(members))
        before = [numbers[member] for member in members]
        for member in members:
            n = numbers[member]
            numbers[member] = n // 2 if n % 2 == 0 else 3 * n + 1
        return before

    together = Together(numbers, answer)
    for future in [beside(collatz, together, member, ended) for member in numbers]:
        future.result(timeout=10)
    assert sorted(ended) == [("a", 7), ("b", 0), ("c", 3)]
    assert [len(members) for members in calls] == [3, 2, 2, 2, 1, 1, 1, 1]


def test_an_error_reaches_every_member():
    together = Together("ab", lambda members: 1 / 0)

    def ask(member):
        with together.member(member) as asked:
            asked()

    for future in [beside(ask, member) for member in "ab"]:
        with pytest.raises(ZeroDivisionError):
            future.result(timeout=10)
