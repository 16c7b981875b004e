"""What no child is forked in the middle of.

A child has every lock that a thread of its parent holds at that moment, a module's that is just being imported among
them, and nobody there to release it.
"""

from __future__ import annotations

import os
from typing import Protocol


class Lock(Protocol):
    """A lock of `threading`."""

    def acquire(self) -> bool: ...
    def release(self) -> None: ...


def wait_for(lock: Lock) -> None:
    """From now on this process forks only while nobody holds the lock."""
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
