"""Checks a running installation and says what is unsafe: `python -m jobs.doctor`, with the environment of a process.

Each check asks the real thing and answers ok, unsafe, or unknown where it cannot be asked. Run it where the answers
are: in a worker's container it sees that worker's GPU and disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from jobs import checkup, checkup_broker
from jobs.checkup import Finding
from jobs.errors import JobsError
from jobs.pipeline import Pipelines
from jobs.settings import Settings, load_or_exit
from jobs.store import JobStore, open_store

WELL, UNSAFE = 0, 1


def examine(settings: Settings, store: JobStore, pipelines: Pipelines, rabbitmqctl: str) -> Iterator[Finding]:
    """Every check, whatever breaks in one of them."""
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("store", lambda: checkup.records(settings, store)),
        ("passwords", lambda: checkup.passwords(settings)),
        ("clock", lambda: checkup.clock(store, time.time)),
        ("disk", lambda: checkup.disk(settings)),
        ("waits", lambda: checkup.waits(store, pipelines)),
        ("gpu", lambda: checkup.gpu(settings)),
        ("queues", lambda: checkup_broker.queues(settings, store, pipelines)),
        ("consumer timeout", lambda: checkup_broker.consumer_timeout(settings, pipelines, rabbitmqctl)),
    )
    for name, check in checks:
        try:
            yield from check()
        except JobsError as error:
            yield Finding(name, "unsafe", str(error))
        except Exception as error:  # noqa: BLE001 - one check that breaks must not hide the others
            yield Finding(name, "unknown", f"The check broke: {type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 when nothing is unsafe, else 1."""
    parser = argparse.ArgumentParser(prog="gristmill doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="write JSON to standard output")
    parser.add_argument(
        "--rabbitmqctl",
        default="rabbitmqctl",
        help="how it is called, such as 'docker compose exec rabbitmq rabbitmqctl' (default: rabbitmqctl)",
    )
    asked = parser.parse_args(arguments)
    settings = load_or_exit()
    store = open_store(settings.store_url, result_ttl_s=settings.result_ttl_s)
    found = list(examine(settings, store, Pipelines(settings.pipeline_dirs), asked.rabbitmqctl))
    store.close()
    if asked.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        print("\n".join(f"{one.verdict:8}{one.check}: {one.text}" for one in found))
    return UNSAFE if any(one.verdict == "unsafe" for one in found) else WELL


if __name__ == "__main__":
    sys.exit(main())
