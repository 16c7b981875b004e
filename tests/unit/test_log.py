"""Our own lines: whole, on stderr, and never in the way of what they tell of."""

from __future__ import annotations

import json
import subprocess
import sys

SETUP = """
import asyncio, os, sys
from jobs import log

class Counted:
    writes = 0

    def write(self, text):
        self.writes += 1
        return sys.__stderr__.write(text)

    def flush(self):
        sys.__stderr__.flush()

    def isatty(self):
        return False

sys.stderr = counted = Counted()
log.setup("info")
logger = log.get("tests")
"""


def run(script: str, stderr: int = subprocess.PIPE) -> tuple[str, list[dict]]:
    """What a process of its own prints, and its lines. AssertionError for one that breaks."""
    done = subprocess.run([sys.executable, "-c", SETUP + script], stdout=subprocess.PIPE, stderr=stderr, timeout=60)
    assert done.returncode == 0, done
    return done.stdout.decode(), [json.loads(line) for line in (done.stderr or b"").splitlines()]


def test_a_line_tells_what_when_and_whence():
    # Given a logger, something bound, and what JSON does not know
    _, lines = run("""
log.bind(trace_id="abc")
logger.info("it_went", size={1}, name="ä")
logger.debug("nobody_listens")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it_broke")
""")
    # Then each line that is loud enough is there, with everything
    went, broke = lines
    assert went.pop("timestamp").endswith("Z")
    assert went == {
        "event": "it_went",
        "level": "info",
        "logger": "tests",
        "size": "{1}",
        "name": "ä",
        "trace_id": "abc",
    }
    assert (broke["level"], broke["exception"].splitlines()[-1]) == ("error", "ZeroDivisionError: division by zero")


def test_the_lines_of_one_turn_of_a_loop_go_in_one_piece():
    # Given three tasks that log in the same turn, and a thread that logs beside them
    printed, lines = run("""
async def one(n):
    logger.info("one", n=n)

async def main():
    await asyncio.gather(one(1), one(2), one(3))
    await asyncio.to_thread(logger.info, "beside")
    await asyncio.sleep(0)

asyncio.run(main())
print(counted.writes)
""")
    # Then those of the tasks were written at once, and none is missing
    assert printed == "2\n"
    assert sorted(line["event"] for line in lines) == ["beside", "one", "one", "one"]
    assert [line["n"] for line in lines if "n" in line] == [1, 2, 3]


def test_the_last_turn_is_written_too():
    # Given a loop that ends, by what it does last, before its next turn
    _, lines = run("""
async def main():
    logger.info("last")
    asyncio.get_running_loop().stop()
    sys.exit()

asyncio.run(main())
""")
    # Then its line is there
    assert [line["event"] for line in lines] == ["last"]


def test_a_loop_that_was_left_in_its_turn_keeps_no_line_of_the_next_one():
    # Given a loop that is never run again, with a line that waits for its turn's end
    _, lines = run("""
left = asyncio.new_event_loop()
left.call_soon(lambda: (logger.info("left"), sys.exit()))
try:
    left.run_forever()
except SystemExit:
    pass

async def main():
    logger.info("next")
    await asyncio.sleep(0)

asyncio.run(main())
os._exit(0)
""")
    # Then both are there, by the next one's turn
    assert [line["event"] for line in lines] == ["left", "next"]


def test_a_log_that_cannot_be_written_stops_no_work():
    # Given a disk that is full
    with open("/dev/full", "wb") as full:
        printed, _ = run(
            """
async def main():
    logger.info("in_a_loop")
    await asyncio.sleep(0)

logger.info("by_itself")
asyncio.run(main())
print("went on")
sys.stdout.flush()
os._exit(0)  # the interpreter's own flush of stderr would make it 120
""",
            full.fileno(),
        )
    # Then everything but the lines is as it was
    assert printed == "went on\n"
