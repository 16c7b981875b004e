"""What no child is forked in the middle of.

A child has every lock that a thread of its parent holds at that moment, a module's that is just being imported among
them, and nobody there to release it.
"""

from __future__ import annotations

import os
from typing import Protocol


class Lock(Protocol):
    """A lock of `threading`."""

    def acquire(self, *, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


def wait_for(lock: Lock, most_s: float = -1) -> None:
    """From now on this process forks only while nobody holds the lock; after `most_s` seconds, if any, all the same."""
    held: list[bool] = []

    def before() -> None:
        held.append(lock.acquire(timeout=most_s))

    def after() -> None:
        if held.pop():
            lock.release()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)
