"""What the front door promises: targets that explain themselves, fresh locks, a README that is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from gristmill import exits
from gristmill.cli import app
from jobs.model import NEXT

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PIPELINES = sorted(file.parent for file in (ROOT / "celery_worker" / "pipelines").glob("*/pipeline.yaml"))


def pins(lock: Path) -> set[str]:
    """What a lock pins: `name==version` each."""
    return set(re.findall(r"^([a-z0-9-]+==\S+)", lock.read_text(), re.M))


def test_every_make_target_says_what_it_does():
    # Given the targets that can be called
    phony = {name for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.M) for name in line.split()}
    # Then each has its ##, and `make` alone lists it
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## .+$", MAKEFILE, re.M))
    # An outer make says "Entering directory" through MAKEFLAGS, which belongs to no list of targets.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    make = ["make", "--no-print-directory"]
    listed = subprocess.run(make, cwd=ROOT, env=alone, capture_output=True, text=True, check=True, timeout=30).stdout
    assert explained == phony
    assert {line.split()[1] for line in listed.splitlines()} == phony


def test_no_lock_is_older_than_what_it_was_made_from():
    # When the locks are checked, then none is stale
    checked = subprocess.run([sys.executable, "requirements/lock.py", "--check"], cwd=ROOT, timeout=30, check=False)
    assert checked.returncode == 0


def test_the_images_have_the_versions_that_were_tested_together():
    # Given the locks of the images
    tested = pins(ROOT / "requirements" / "dev.txt")
    # Then each of their pins is one of the environment that runs the tests
    for name in ("api", "worker", "flower"):
        assert pins(ROOT / "requirements" / f"{name}.txt") - tested == set()
    for folder in PIPELINES:
        assert pins(folder / "requirements.txt") - tested == set()


def test_the_readme_draws_the_moves_that_a_job_can_make():
    # Given the diagram
    drawn = set(re.findall(r"^    (\w+|\[\*\]) --> (\w+|\[\*\])$", README, re.M))
    # Then it is the table of moves, with its start and its ends
    moves = {(str(status), str(to)) for status, after in NEXT.items() for to in after}
    ends = {(str(status), "[*]") for status in NEXT if status.is_final}
    assert drawn == moves | ends | {("[*]", "accepted")}


def test_the_readme_lists_every_command_and_exit_code():
    # Given the command's own words
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    # Then the README has each
    assert set(re.findall(r"^\| `gristmill (\w+)", README, re.M)) == commands
    listed = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", README, re.M)}
    assert listed == dict(exits.MEANINGS)


def test_the_client_and_the_one_machine_mode_agree_on_exit_codes():
    # Given two packages that may not import each other
    from jobs import up

    # Then their codes are equal
    assert (up.COULD_NOT_START, up.USAGE, up.RUNNING_ALREADY, up.PORT_IN_USE) == (
        exits.JOB_FAILED,
        exits.USAGE,
        exits.REFUSED,
        exits.PORT_IN_USE,
    )


def test_the_client_needs_nothing_but_its_three_packages():
    # Given a Python that cannot import the rest of the tree
    probe = """
import sys, gristmill.cli
print(*sorted({name.partition('.')[0] for name in sys.modules} & {'jobs', 'api', 'celery_worker', 'celery', 'redis'}))
"""
    # When the client is imported, then nothing of it was
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == ""
