"""A real gateway over a real Valkey and local files; tests play the worker through the store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.model import Artifact, Claim, PartKey
from jobs.store import JobStore, open_store
from jobs.values import pack
from tests.gateways import Gateway
from tests.neighbours import Valkey, free_port

ADDITION = {"addition": {"x": 1, "y": 2}}

_tokens = (f"token-{n}" for n in itertools.count())


@pytest.fixture(scope="session")
def api_valkey() -> Iterator[Valkey]:
    """The gateway's own, so that no other test empties it."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(api_valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway that validates its own answers, with small limits."""
    with small_gateway(api_valkey, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def fresh_gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Another one, with no job in it."""
    with Valkey() as store, small_gateway(store, tmp_path) as running:
        yield running


def small_gateway(store: Valkey, folder: Path) -> Gateway:
    limits = {"MAX_BODY_BYTES": "200000", "MAX_UPLOAD_BYTES": "3000000", "MAX_WAIT_S": "2"}
    return Gateway(free_port(), store.url, f"{store.url[:-1]}1", folder, **limits)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx2.Client]:
    """HTTP to the gateway."""
    with gateway.client() as client:
        yield client


@pytest.fixture(scope="session")
def records(api_valkey: Valkey) -> Iterator[JobStore]:
    """The store behind the gateway."""
    store = open_store(api_valkey.url)
    yield store
    store.close()


@pytest.fixture
def submit(client: httpx2.Client) -> Callable[..., dict[str, Any]]:
    """A factory of accepted jobs: `submit()` adds 1 and 2, `submit("tiles")` is a pipeline without params."""

    def accepted(pipeline: str = "addition", **params: Any) -> dict[str, Any]:
        answer = client.post("/process", json={"pipeline": pipeline, "params": params or ADDITION.get(pipeline, {})})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    return accepted


class Worker:
    """Plays the worker of one job, stage by stage."""

    def __init__(self, store: JobStore, files: Path) -> None:
        self._store, self._files = store, files

    def claim(self, job_id: str, stage: int = 0, generation: int = 0, index: int = 0) -> Claim:
        """Take a part."""
        claim = self._store.claim(PartKey(job_id, stage, generation, index), "test", next(_tokens), 60.0, "cpu")
        assert claim
        return claim

    def finish(
        self, claim: Claim, value: Any, artifacts: tuple[Artifact, ...] = (), emitted: int | None = None
    ) -> None:
        """Record a part's output."""
        self._store.finish(claim, pack(value, self._spill), artifacts, emitted)

    def finish_job(self, job_id: str, value: Any, artifacts: tuple[Artifact, ...] = ()) -> None:
        """Take and finish the only part of a job of one stage."""
        self.finish(self.claim(job_id), value, artifacts)

    def keep(self, job_id: str, name: str, content: bytes, media_type: str) -> Artifact:
        """Store a file as a stage would."""
        from hashlib import sha256

        file = f"jobs/{job_id}/0/0.0.1/{name}"
        path = self._files / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Artifact(name, file, len(content), sha256(content).hexdigest(), media_type)

    def _spill(self, data: bytes) -> str:
        file = f"jobs/spilled/{next(_tokens)}"
        path = self._files / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return file


@pytest.fixture
def worker(records: JobStore, gateway: Gateway) -> Worker:
    """Plays the worker."""
    return Worker(records, gateway.files)


@pytest.fixture
def refused() -> Callable[..., dict[str, Any]]:
    """Checks that an answer is a problem: `refused(answer, 422, "params-invalid", "/params/x")`."""

    def check(answer: httpx2.Response, status: int, name: str, *pointers: str) -> dict[str, Any]:
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem: dict[str, Any] = json.loads(answer.text)
        assert (answer.status_code, problem["status"], problem["type"]) == (status, status, f"/problems/{name}"), (
            problem
        )
        assert problem["title"]
        assert problem["detail"]
        assert "Traceback" not in answer.text
        if pointers:
            assert [each["pointer"] for each in problem["errors"]] == list(pointers)
        return problem

    return check
