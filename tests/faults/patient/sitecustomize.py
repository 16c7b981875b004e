"""Python sleeps until a moment of the monotonic clock, which libfaketime 0.9.10 reckons wrongly: sleep by select."""

import select
import time


def sleep(seconds):
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = sleep
