"""Workers on a second host: another compose project, on a network of its own, with a road to the main host.

Two hosts are one machine here. The road is a container on both networks that carries bytes to the broker and the store,
as routers between two hosts would: the second project shares no network with the first, and nothing is published to it.
S3 is moto's server, a stand-in that both hosts reach.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gristmill import Status
from tests.compose.conftest import built
from tests.compose.examples import STREET
from tests.compose.load import Load
from tests.compose.neighbours import running
from tests.compose.stack import ROOT, Stack, docker

MAIN, SECOND = "gristmill-main", "gristmill-second"
ROAD = """
import asyncio
async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
def to(host, port):
    async def connected(reader, writer):
        far_reader, far_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer), return_exceptions=True)
    return connected
async def main():
    servers = [await asyncio.start_server(to(host, port), "0.0.0.0", port) for host, port in PLACES]
    await asyncio.gather(*(server.serve_forever() for server in servers))
asyncio.run(main())
"""
PLACES = [("rabbitmq", 5672), ("redis", 6379)]
S3 = {
    "FILES_URL": "s3://gristmill/files",
    "AWS_ACCESS_KEY_ID": "insecure-key",
    "AWS_SECRET_ACCESS_KEY": "insecure-secret",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "http://s3:9000",
}

BUCKET = """
import time, urllib.error, urllib.request
for _ in range(60):
    try:
        urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:9000/gristmill", method="PUT"))
        break
    except urllib.error.HTTPError as error:
        if error.code == 409:
            break
        raise
    except OSError:
        time.sleep(0.5)
else:
    raise SystemExit("S3 did not start")
"""


@pytest.fixture(scope="module", params=["folder", "s3"])
def files(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Where both hosts have their files: what the env file of each says about it."""
    if request.param == "folder":
        yield {"FILES_URL": "file:///var/lib/gristmill/files"}
        return
    with running("s3"):
        yield S3


@pytest.fixture(scope="module")
def main_host(files: dict[str, str]) -> Iterator[Stack]:
    """The stack, with no workers of its own but for the preprocessing."""
    none = {f"WORKER_{name}_REPLICAS": "0" for name in ("INFERENCE", "POSTPROCESS", "IO", "TEXT")}
    with Stack("rabbitmq-redis", MAIN, env={**none, **files}) as one:
        one.down("-v")
        built(one)
        one.compose("up", "--no-start")
        with joined(f"{MAIN}_inside", files):
            one.up("api", "proxy", "sweeper", "worker-preprocess", "rabbitmq")
            yield one


@pytest.fixture(scope="module")
def second_host(main_host: Stack, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Inference, postprocessing and io, elsewhere: one env file, made from the model that is in docker/env."""
    env_file = tmp_path_factory.mktemp("second") / "worker.env"
    env_file.write_text(
        filled_in(
            {
                "BROKER_URL": "amqp://gristmill:insecure-rabbitmq@main-host:5672//",
                "STORE_URL": "redis://:insecure-redis@main-host:6379/0",
                "WORKER_PREPROCESS_REPLICAS": "0",
                "WORKER_INFERENCE_REPLICAS": "2",
                "WORKER_IO_REPLICAS": "1",
                **files,
            }
        )
    )
    # The folder that both hosts have is the main host's volume.
    shared = {"FILES_VOLUME": f"{MAIN}-files" if files["FILES_URL"].startswith("file:") else f"{SECOND}-files"}
    with Stack("worker", SECOND, files=("docker-compose.worker.yml",), env=shared, env_file=env_file) as one:
        one.compose("up", "--no-start")
        carrier = ("gristmill/worker-io:dev", "python", "-c", ROAD.replace("PLACES", repr(PLACES)))
        road = ("--network", f"{SECOND}_default", "--network-alias", "main-host")
        docker("run", "-d", "--name", f"{SECOND}-road", *road, *carrier)
        try:
            docker("network", "connect", f"{MAIN}_inside", f"{SECOND}-road")
            with joined(f"{SECOND}_default", files):
                one.up()
                yield one
        finally:
            docker("rm", "-f", "-v", f"{SECOND}-road")


def joined(network: str, files: dict[str, str]) -> ExitStack:
    """S3 is reached from a network, until the end of the `with`; a shared folder needs no such thing."""
    leaving = ExitStack()
    if files is S3:
        docker("network", "connect", "--alias", "s3", network, "gristmill-neighbour-s3")
        leaving.callback(docker, "network", "disconnect", network, "gristmill-neighbour-s3")
        # The bucket is there before those who use it, as anywhere.
        docker("exec", "gristmill-neighbour-s3", "python", "-c", BUCKET)
    return leaving


def filled_in(values: dict[str, str]) -> str:
    """docker/env/worker.env with these values. KeyError for one that it does not name."""
    model = (ROOT / "docker" / "env" / "worker.env").read_text()
    named = dict(re.findall(r"^([A-Z_0-9]+)=(.*)$", model, re.M))
    unknown = set(values) - set(named)
    assert not unknown, f"docker/env/worker.env does not name {sorted(unknown)}"
    return "".join(f"{name}={values.get(name, said)}\n" for name, said in named.items())


def test_jobs_run_on_the_second_host(main_host: Stack, second_host: Stack, tmp_path: Path) -> None:
    # Given two projects that share no network
    networks = [
        {name for found in stack.services().values() for one in found for name in one["NetworkSettings"]["Networks"]}
        for stack in (main_host, second_host)
    ]
    assert networks[0] & networks[1] == set()
    with main_host.client() as client:
        # When jobs are submitted here, whose stages run there
        addition = client.submit("addition", x=40, y=2).wait(timeout=60)
        video = client.submit("video", file=STREET, fps=5).wait(timeout=240)
        # Then both are done, and what they kept comes from here
        assert (addition.result, video.status) == (42, Status.SUCCESSFUL), video.error
        assert {path.name for path in video.download(tmp_path)} >= {"annotated.mp4", "contact-sheet.jpg"}


@pytest.mark.parametrize("files", ["s3"], indirect=True, scope="module")
def test_the_second_host_may_vanish_and_come_back(main_host: Stack, second_host: Stack) -> None:
    # Given jobs under way on the second host
    with Load(main_host.url) as load:
        # When it loses its power, and comes back
        docker("kill", *second_host.containers())
        time.sleep(3)
        second_host.up()
    # Then nothing is lost
    assert load.account() > 0
