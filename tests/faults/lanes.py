"""Rows side by side, since most of a case is waiting: for a lease to run out, for a server that is away.

A lane is a process: what ends a case that hangs is a signal to the main thread.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tests.faults.runner import Row

Play = Callable[[Any], Iterator[Row]]


def rows(groups: Sequence[Any], lanes: int, play: Play) -> Iterator[Row]:
    """What `play` makes of each group, as it comes; a lane that is free takes the next group.

    Left early, it ends the lanes, and these what they started. Raises RuntimeError if a lane dies.
    """
    context = multiprocessing.get_context("fork")
    todo: Any = context.SimpleQueue()
    for number in (*range(len(groups)), *[None] * lanes):
        todo.put(number)
    running: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(lanes):
            receiver, sender = context.Pipe(duplex=False)
            running[receiver] = context.Process(target=_lane, args=(todo, sender, groups, play))
            running[receiver].start()
            sender.close()
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                try:
                    yield ready.recv()
                except EOFError:
                    lane = running.pop(ready)
                    lane.join()
                    if lane.exitcode:
                        raise RuntimeError(f"a lane ended with {lane.exitcode}") from None
    finally:
        for lane in running.values():
            lane.terminate()
        for lane in running.values():
            lane.join()


def _lane(todo: Any, sender: Connection, groups: Sequence[Any], play: Play) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # a Ctrl-C reaches the whole group; the first process ends its lanes
    while (number := todo.get()) is not None:
        for row in play(groups[number]):
            sender.send(row)
