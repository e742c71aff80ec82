"""Batches made ahead: in order, bounded, with errors in their place, and no thread or process left behind."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from layerfold.data._threads import for_each, prepared_ahead
from layerfold.data._workers import worker_batches
from layerfold.errors import DataError


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "layerfold-batches"]


class Maker:
    """Makes numbers, and counts them."""

    def __init__(self, fails_at: int = -1) -> None:
        self.made = 0
        self._fails_at = fails_at

    def __call__(self, number: int) -> int:
        if number == self._fails_at:
            raise DataError(f"number {number} is broken")
        self.made += 1
        return number


def test_items_come_in_order() -> None:
    maker = Maker()
    assert list(prepared_ahead([partial(maker, number) for number in range(50)])) == list(range(50))
    assert list(prepared_ahead([])) == []
    assert not threads()


def test_error_is_raised_where_its_item_would_have_been() -> None:
    items = prepared_ahead([partial(Maker(fails_at=7), number) for number in range(20)])
    assert list(itertools.islice(items, 7)) == list(range(7))
    with pytest.raises(DataError, match="number 7 is broken"):
        next(items)
    assert not threads()


def test_no_more_than_a_few_items_are_made_ahead() -> None:
    maker = Maker()
    items = prepared_ahead([partial(maker, number) for number in range(100)])
    for taken in range(1, 11):
        next(items)
        deadline = time.monotonic() + 30
        while maker.made < taken + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert maker.made == taken + 3  # two in the queue, one that waits for room
    items.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("taken", [1, 2, 5])
def test_thread_ends_when_the_iterator_is_dropped(taken: int) -> None:
    items = prepared_ahead([partial(Maker(), number) for number in range(100)])
    for _ in range(taken):
        next(items)
    assert len(threads()) == 1
    del items
    gc.collect()
    assert not threads()


def test_thread_ends_when_its_caller_fails() -> None:
    def use() -> None:
        for number in prepared_ahead([partial(Maker(), number) for number in range(100)]):
            if number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    gc.collect()
    assert not threads()


def test_each_item_is_handled_once_and_the_first_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfold.data._threads.num_workers", lambda: 4)
    handled: list[int] = []
    for_each(handled.append, range(1000))
    assert sorted(handled) == list(range(1000))
    with pytest.raises(DataError, match="number 40 is broken"):
        for_each(Maker(fails_at=40), range(1000))


def batch(number: int, is_broken: bool = False) -> tuple[Tensor, Tensor]:
    if is_broken:
        raise DataError(f"batch {number} is broken")
    return torch.full((2, 1, 1, 1), float(number)), torch.tensor([number, number])


def makers(count: int, broken: int = -1) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    return [partial(batch, number, number == broken) for number in range(count)]


def test_worker_processes_keep_order_hand_on_errors_and_end() -> None:
    assert [int(labels[0]) for _, labels in worker_batches(makers(9))] == list(range(9))
    batches = worker_batches(makers(9, broken=4))
    assert [int(labels[0]) for _, labels in itertools.islice(batches, 4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"^batch 4 is broken$"):
        next(batches)
    batches = worker_batches(makers(50))
    next(batches)
    assert multiprocessing.active_children()
    del batches
    gc.collect()
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
