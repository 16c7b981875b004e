"""Disks that are full: the store's, then that of the files."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import psycopg2

from jobs.files import upload_name
from tests.faults.case import Scene, case
from tests.faults.installation import CLASSIC, QUORUM, ready
from tests.faults.load import ACCEPTED, UNKNOWN
from tests.faults.places import filled, small_disk
from tests.neighbours import Postgres, Server

FULL_S = 20.0
STORE_MIB = {"redis": 64, "postgres": 320}
FILES_MIB = 64


@case(11, "store's disk full, then the files'", pairs=(CLASSIC, QUORUM), jobs=300, alone=True)
def disks_full(scene: Scene) -> None:
    """Clear answers meanwhile; nothing torn; all goes on without hands once there is space again."""
    here = scene.installation
    store, files = here.store_server, here.folder / "files"
    store.kill()
    here.borrowed.enter_context(small_disk(store.folder, STORE_MIB[here.pair.store]))
    here.borrowed.enter_context(small_disk(files, FILES_MIB))
    store.start()
    scene.until(lambda: all(ready(port) for port in here.ports), "the gateways to be ready again")
    full: list[tuple[float, float]] = []
    with here.keeper.keeping(store), Uploads(here.ports[0]) as uploads, scene.load(in_flight=24, rate=10.0) as load:
        for fraction, folder in ((0.2, store.folder), (0.5, files)):
            load.reached(fraction)
            began = time.monotonic()
            with filled(folder):
                _press(store if folder == store.folder else None, until=began + FULL_S)
            full.append((began, time.monotonic()))
            scene.recovered_after(full[-1][1])
    account = scene.settle()
    meanwhile = [one for one in scene.attempts if full[0][0] + 1 <= one.began <= full[0][1]]
    refused = [one for one in meanwhile if one.outcome != ACCEPTED]
    scene.expect("refused while the store's disk was full", len(refused), least=2)
    scene.expect("other than 503", sum(one.status != 503 for one in refused), most=0)
    scene.expect("slowest answer s", max((one.took_s for one in meanwhile), default=0.0), most=3.0)
    scene.expect("unknown", sum(one.outcome == UNKNOWN for one in scene.attempts), most=1)
    scene.expect("uploads refused with 507", uploads.answers[507], least=1)
    scene.expect("uploads answered otherwise", uploads.others, most=0)
    scene.expect("uploads torn", sum(not _is_whole(scene, *one) for one in uploads.kept), most=0)
    scene.expect("uploads kept", len(uploads.kept), least=1)
    scene.expect("failed", len(account.failed), most=0)


def _press(full: Server | None, until: float) -> None:
    """Wait; meanwhile a full Postgres, which has room in files that it made before, is brought to the next of its log.

    Each switch takes 16 MiB: one with room would be filled by them.
    """
    while time.monotonic() < until:
        time.sleep(1.0)
        with contextlib.suppress(psycopg2.Error):
            if isinstance(full, Postgres):
                link = psycopg2.connect(full.url, connect_timeout=2)
                with contextlib.closing(link), link.cursor() as cursor:
                    cursor.execute("SELECT pg_switch_wal()")


@dataclass
class Uploads:
    """A client that uploads a small file again and again."""

    port: int
    answers: Counter[int] = field(default_factory=Counter)
    kept: list[tuple[str, str]] = field(default_factory=list)  # the upload's id, and the sha256 of what was sent

    @property
    def others(self) -> int:
        """Answers that are neither yes nor a clear no. A store that is gone in mid-answer is 503 too."""
        return sum(count for status, count in self.answers.items() if status not in (201, 503, 507))

    def __enter__(self) -> Uploads:
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(15.0)

    def _run(self) -> None:
        while not self._closing.wait(0.2):
            self._upload(str(time.monotonic_ns()).encode() * 1_000)

    def _upload(self, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", "/files", body, {"Content-Type": "text/plain"})
            answer = connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException):
            self.answers[0] += 1
            return
        finally:
            connection.close()
        self.answers[answer.status] += 1
        if answer.status == 201:
            self.kept.append((json.loads(told)["id"], hashlib.sha256(body).hexdigest()))


def _is_whole(scene: Scene, upload_id: str, sha256: str) -> bool:
    return hashlib.sha256(scene.installation.files.load(upload_name(upload_id))).hexdigest() == sha256
