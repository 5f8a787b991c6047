"""budget.py: threads decode together only as much as memory allows."""

import threading
import time

import numpy as np
import pytest

from retraining.photos import decode as decode_module
from retraining.photos.budget import Budget, decoding_budget
from retraining.photos.decode import decode
from retraining.system import memory
from tests.photos.test_bounds import encoded, jpeg, picture


def most_at_once(budget, sizes):
    """Returns the largest sum of what threads held at the same time, of these sizes each."""
    held, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(len(sizes))

    def work(size):
        nonlocal held, most
        together.wait()
        for _ in range(20):
            with budget.take(size):
                with lock:
                    held += size
                    most = max(most, held)
                time.sleep(0.001)  # lets the others run
                with lock:
                    held -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return most


def test_threads_never_hold_more_than_the_budget():
    assert most_at_once(Budget(100), [40, 40, 40, 40]) <= 80


def test_what_is_larger_than_the_budget_is_held_alone():
    assert most_at_once(Budget(100), [150, 60, 60]) <= 150


def test_an_error_gives_the_share_back():
    budget = Budget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), budget.take(10):
            raise ValueError("x")
    assert most_at_once(budget, [10, 10]) == 10


@pytest.mark.parametrize("content", [jpeg(), encoded(picture(), "PNG")])
def test_each_format_takes_its_share(monkeypatch, content):
    asked = []

    class Asked(Budget):
        def take(self, size):
            asked.append(size)
            return super().take(size)

    monkeypatch.setattr(decode_module, "decoding_budget", lambda: Asked(1))
    assert isinstance(decode(content), np.ndarray)
    (size,) = asked
    assert 40 * 24 * 3 <= size <= 40 * 24 * 16


def test_the_budget_is_a_fourth_of_the_free_memory():
    free = memory.free_memory()
    assert free is None or 0 < decoding_budget()._size <= 64 << 40


def test_the_limit_of_a_container_counts(monkeypatch):
    texts = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   4096 kB\n",
        f"{memory.GROUP}/memory.max": "3000000\n",
        f"{memory.GROUP}/memory.current": "2500000\n",
        f"{memory.GROUP}/memory.stat": "anon 5\ninactive_file 1000000\n",
    }
    monkeypatch.setattr(memory, "_text", lambda path: texts.get(path, ""))
    assert memory.free_memory() == 1_500_000
    texts[f"{memory.GROUP}/memory.max"] = "max\n"
    assert memory.free_memory() == 4096 << 10
