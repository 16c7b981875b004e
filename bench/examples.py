"""Every pipeline's example.json through HTTP, compared with answer.json beside it: `make examples`.

What the examples reach for is served on loopback: samples/site/ over HTTP and a mail server that keeps what it gets.
Loopback is opened by ALLOWED_HOSTS, as an operator of a closed network would open a host of his own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx2
from aiosmtpd.controller import Controller

from bench.rounds import machine
from gristmill import Client, Status
from tests.acceptance.installations import OneMachine
from tests.neighbours import free_port

ROOT = Path(__file__).resolve().parent.parent
PIPELINES = ROOT / "celery_worker" / "pipelines"
SERVED_AS = "http://127.0.0.1:8000/"  # in an example.json; here it is another port
WITHIN_S = 300.0


def main() -> int:
    """Run them all; the exit code says whether all came out as they should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipelines", nargs="*", help="only these")
    asked = parser.parse_args()
    examples = [one for one in examples_of(PIPELINES) if not asked.pipelines or one.name in asked.pipelines]
    print(machine(), flush=True)
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="gristmill-examples-") as folder,
        Street(Path(folder)) as street,
        OneMachine(**street.environment) as installation,
        Client(installation.url) as client,
    ):
        for example in examples:
            began = time.monotonic()
            found = differences(example, client, street)
            wrong += bool(found)
            print(f"{example.name:12} {'differs' if found else 'as stored':10} {time.monotonic() - began:6.1f} s")
            for line in found:
                print(f"    {line}")
            sys.stdout.flush()
    print(f"figure examples_as_stored {len(examples) - wrong} (of {len(examples)})")
    return 1 if wrong else 0


@dataclass(frozen=True)
class Example:
    """A body that POST /process takes, and what must come of it.

    In the body a file is a path in this tree. Of `answer`, `result` is compared by `unequal`, and each of `artifacts`
    must be there.
    """

    name: str
    body: Mapping[str, Any]
    answer: Mapping[str, Any]


def examples_of(folder: Path) -> list[Example]:
    """Those of a folder of pipelines. Raises FileNotFoundError for a pipeline that lacks one of its two files."""
    return [
        Example(
            file.parent.name,
            *(json.loads((file.parent / f"{name}.json").read_text()) for name in ("example", "answer")),
        )
        for file in sorted(folder.glob("*/pipeline.yaml"))
    ]


def differences(example: Example, client: Client, street: Street) -> list[str]:
    """In what an example came out other than it should; none if it did not."""
    given = dict(example.body.get("input", {}))
    if "file" in given:
        given["file"] = client.upload(ROOT / given["file"])
    if "files" in given:
        given["files"] = [client.upload(ROOT / each) for each in given["files"]]
    if "url" in given:
        given["url"] = given["url"].replace(SERVED_AS, street.site_url)
    body = {**example.body, **({"input": given} if given else {})}
    accepted = httpx2.post(f"{client.url}/process", json=body, timeout=60)
    if accepted.status_code != 202:
        return [f"POST /process answered {accepted.status_code}: {accepted.text[:500]}"]
    job = client.job(accepted.json()["id"]).wait(timeout=WITHIN_S)
    if job.status is not Status.SUCCESSFUL:
        return [f"the job {job.status}: {job.error}"]
    kept = {artifact.name for artifact in job.artifacts()}
    missing = [f"no artifact {name}" for name in example.answer.get("artifacts", ()) if name not in kept]
    # What we served stands in some results; the stored ones know the address of the example.
    result = json.loads(json.dumps(job.result).replace(street.site_url, SERVED_AS))
    return [*unequal(example.answer["result"], result), *missing]


def unequal(stored: Any, found: Any, at: str = "result") -> Iterator[str]:
    """Where `found` differs: it may have more members, and numbers may be off by 2 % or 0.02.

    Of a list that is stored as an object, only the entries of those numbers are compared.
    """
    if isinstance(stored, dict) and isinstance(found, list):
        found = {str(n): value for n, value in enumerate(found)}
    if isinstance(stored, dict) and isinstance(found, dict):
        for name, value in stored.items():
            if name in found:
                yield from unequal(value, found[name], f"{at}/{name}")
            else:
                yield f"{at}/{name} is missing"
    elif isinstance(stored, list) and isinstance(found, list):
        if len(stored) != len(found):
            yield f"{at} has {len(found)} entries, not {len(stored)}: {found!r:.300}"
        for n, (one, other) in enumerate(zip(stored, found, strict=False)):
            yield from unequal(one, other, f"{at}/{n}")
    elif _is_number(stored) and _is_number(found):
        if abs(stored - found) > max(0.02, 0.02 * abs(stored)):
            yield f"{at} is {found!r}, not {stored!r}"
    elif type(stored) is not type(found) or stored != found:
        yield f"{at} is {found!r:.300}, not {stored!r:.300}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class Street:
    """A web server with samples/site/ and a mail server, both on loopback; `mails` are those that came."""

    folder: Path
    mails: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = partial(_Quiet, directory=str(ROOT / "samples" / "site"))
        self._site = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._site.serve_forever, daemon=True).start()
        self._mail_port = free_port()
        self._post = Controller(_Letterbox(self.mails), hostname="127.0.0.1", port=self._mail_port)
        self._post.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._post.stop()
        self._site.shutdown()
        self._site.server_close()

    @property
    def site_url(self) -> str:
        """Where samples/site/ is."""
        return f"http://127.0.0.1:{self._site.server_port}/"

    @property
    def environment(self) -> dict[str, str]:
        """What an installation must be told to reach both."""
        return {
            "ALLOWED_HOSTS": f"127.0.0.1:{self._site.server_port}",
            "ONBOARDING_DATABASE_URL": f"sqlite:///{self.folder}/onboarding.db",
            "ONBOARDING_SMTP_URL": f"smtp://127.0.0.1:{self._mail_port}",
            "ONBOARDING_SENDER": "welcome@gristmill.example",
        }


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Letterbox:
    """Takes every mail."""

    def __init__(self, mails: list[Any]) -> None:
        self._mails = mails

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self._mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"


if __name__ == "__main__":
    sys.exit(main())
