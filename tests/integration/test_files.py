"""One contract for both places where bytes live. S3 is moto's HTTP server, a stand-in: S3's rules, not its scale."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import boto3
import pytest
from moto.server import ThreadedMotoServer

from jobs.errors import FileMissing, FilesFull, FilesUnavailable, SettingsInvalid
from jobs.file_stores.s3 import PING_S
from jobs.files import Files, Stored, Writer, open_files, part_folder
from jobs.model import PartKey
from jobs.sweeper_metrics import looks

BUCKET = "gristmill-tests"
MIB = 1_048_576


def stored(data: bytes) -> Stored:
    """What `put` answers for these bytes."""
    return Stored(len(data), hashlib.sha256(data).hexdigest())


def write_all(writer: Writer, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)


@pytest.fixture(scope="module")
def s3_endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """A client of the stand-in, beside ours, with an empty bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "insecure-key",
        "AWS_SECRET_ACCESS_KEY": "insecure-secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for found in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=found["Key"])
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(params=["local", "s3"])
def files(request, tmp_path) -> Files:
    if request.param == "local":
        return open_files(f"file://{tmp_path}/files")
    request.getfixturevalue("s3")
    return open_files(f"s3://{BUCKET}/some/prefix")


@pytest.fixture
def local(tmp_path) -> Files:
    return open_files(f"file://{tmp_path}/files")


def test_what_is_there_is_listed_with_its_size_and_age(files):
    # Given files in folders, and one elsewhere
    names = {f"jobs/{job}/0/{n}.txt" for job in "ab" for n in range(3)} | {"jobs/c"}
    for name in {*names, "uploads/x"}:
        files.put(name, name.encode())
    # When a folder is listed, and one that is not there
    found = list(files.listed("jobs"))
    # Then every file below it is there once, and new
    assert sorted((one.name, one.bytes) for one in found) == sorted((name, len(name)) for name in names)
    assert all(-60 < one.age_s < 600 for one in found)
    assert list(files.listed("none")) == []


# -- the contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB + 1, 20 * MIB + 17])
def test_what_is_put_is_read_back_whole(files, size):
    data = random.Random(size).randbytes(size)
    assert files.put("jobs/a/video.bin", data) == stored(data)
    assert files.size("jobs/a/video.bin") == size
    assert files.load("jobs/a/video.bin") == data
    chunks = list(files.read("jobs/a/video.bin"))
    assert b"".join(chunks) == data
    assert all(0 < len(chunk) <= MIB for chunk in chunks)


def test_a_file_is_written_in_pieces_and_appears_at_the_commit(files):
    # Given a file that is being written, larger than any buffer
    pieces = [bytes([n]) * MIB for n in range(20)]
    writer = files.writer("uploads/1")
    for piece in pieces:
        writer.write(piece)
    # Then nothing is under its name
    with pytest.raises(FileMissing):
        files.size("uploads/1")
    # When it is committed, then all of it is, and a repeated commit and a late abort change nothing
    assert writer.commit() == writer.commit() == stored(b"".join(pieces))
    writer.abort()
    assert files.load("uploads/1") == b"".join(pieces)


@pytest.mark.parametrize("size", [5, 20 * MIB])
def test_an_aborted_file_leaves_nothing(files, size, tmp_path, request):
    writer = files.writer("uploads/1")
    writer.write(b"x" * size)
    writer.abort()
    writer.abort()
    with pytest.raises(FileMissing):
        files.load("uploads/1")
    if files.shared_paths:
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    else:
        s3 = request.getfixturevalue("s3")
        assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_a_newer_file_replaces_an_older_one_of_its_name(files):
    files.put("a", b"older, and longer")
    files.put("a", b"newer")
    assert files.load("a") == b"newer"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, slice(0, None)),
        (3, 4, slice(3, 7)),
        (0, 0, slice(0, 0)),
        (9, None, slice(9, None)),
        (9, 10**12, slice(9, None)),
        (5 * MIB - 1, 2, slice(5 * MIB - 1, 5 * MIB + 1)),
        (6 * MIB, None, slice(0, 0)),
        (6 * MIB + 5, 3, slice(0, 0)),
    ],
)
def test_a_range_is_what_lies_in_it(files, start, length, expected):
    data = random.Random(1).randbytes(6 * MIB)
    files.put("a", data)
    assert b"".join(files.read("a", start, length)) == data[expected]


def test_a_missing_file_is_said_before_the_first_chunk(files, tmp_path):
    files.put("folder/a", b"1")
    for name in ("nothing", "folder", "folder/a/b", "folder/nothing"):
        for ask in (files.size, files.load, files.read, lambda name: files.local(name, tmp_path / "scratch")):
            with pytest.raises(FileMissing) as missing:
                ask(name)
            assert missing.value.fields == {"file": name}


def test_a_path_is_put_whole(files, tmp_path):
    source = tmp_path / "made-by-a-stage.mp4"
    source.write_bytes(b"frames" * MIB)
    assert files.put("jobs/1/0/0.0.1/annotated.mp4", source) == stored(b"frames" * MIB)
    assert files.load("jobs/1/0/0.0.1/annotated.mp4") == b"frames" * MIB


def test_a_local_path_holds_the_bytes(files, tmp_path):
    files.put("jobs/1/0/0.0.1/frames.npy", b"one")
    files.put("jobs/1/0/0.1.1/frames.npy", b"two")
    paths = [files.local(f"jobs/1/0/0.{n}.1/frames.npy", tmp_path / "scratch") for n in (0, 1, 0)]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"one"]
    assert paths[0] == paths[2]


def test_deleting_takes_a_file_or_a_whole_folder_and_nothing_beside_it(files, tmp_path):
    # Given a job's files, and names that only begin alike
    for name in ("jobs/1/0/a", "jobs/1/1/b", "jobs/12/a", "jobs/1.txt"):
        files.put(name, b"x")
    # When its folder goes, and goes again
    files.delete("jobs/1/")
    files.delete("jobs/1/")
    files.delete("jobs/never/was")
    # Then the others stay
    for name in ("jobs/1/0/a", "jobs/1/1/b"):
        with pytest.raises(FileMissing):
            files.size(name)
    assert files.load("jobs/12/a") == files.load("jobs/1.txt") == b"x"
    # When they go one by one, then no empty folder stays
    files.delete("jobs/12/a")
    files.delete("jobs/1.txt")
    files.delete("jobs/1.txt")
    if files.shared_paths:
        assert [path.name for path in (tmp_path / "files").iterdir()] == [".aside"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/x",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "a\0b",
        "a\nb",
        "a\\b",
        ".aside/x",
        "x" * 201,
        "a/" * 460,
    ],
)
def test_a_name_that_leaves_its_place_is_refused(files, name, tmp_path):
    for ask in (
        files.writer,
        files.size,
        files.load,
        files.read,
        lambda name: files.put(name, b"x"),
        lambda name: files.local(name, tmp_path / "scratch"),
    ):
        with pytest.raises(ValueError, match="no name of a file"):
            ask(name)
    if name != "a/":
        with pytest.raises(ValueError, match="no name of a file"):
            files.delete(name)


@pytest.mark.parametrize("name", ["jobs/1/b c%ü#?+&.txt", "jobs/1/.hidden", "jobs/1/" + "ü" * 100])
def test_an_odd_name_is_a_name(files, name):
    files.put(name, b"x")
    assert files.load(name) == b"x"
    files.delete("jobs/1/")
    with pytest.raises(FileMissing):
        files.size(name)


def test_writers_of_one_name_do_not_mix(files):
    # Given eight files of one name, each written in many pieces at the same time
    contents = [bytes([n]) * (2 * MIB) for n in range(8)]

    def write(data: bytes) -> None:
        writer = files.writer("jobs/1/same")
        for at in range(0, len(data), 65_536):
            writer.write(data[at : at + 65_536])
        assert writer.commit() == stored(data)

    writers = [Thread(target=write, args=(data,)) for data in contents]
    for writer in writers:
        writer.start()
    # Then whoever reads meanwhile sees one of them, whole
    while any(writer.is_alive() for writer in writers):
        with suppress(FileMissing):
            assert files.load("jobs/1/same") in contents
    for writer in writers:
        writer.join()
    assert files.load("jobs/1/same") in contents


def test_files_that_answer_are_pinged_in_silence(files):
    files.ping()


def test_no_two_attempts_share_a_name():
    names = {
        part_folder(PartKey("j", stage, generation, index), fence)
        for stage in (0, 1, 11)
        for generation in (0, 1, 11)
        for index in (0, 1, 11)
        for fence in (0, 1, 11)
    }
    assert len(names) == 81


@pytest.mark.parametrize("url", ["file://", "file:///", "file://data/files", "s3://", "s3:///prefix", "ftp://x/y", "x"])
def test_a_url_that_names_no_place_is_refused(url):
    with pytest.raises(SettingsInvalid, match="FILES_URL"):
        open_files(url)


# -- a local folder ---------------------------------------------------------------------------------------------

WRITES_AND_WAITS = """
import sys, time
from jobs.files import open_files
writer = open_files(sys.argv[1]).writer("uploads/1")
for _ in range(int(sys.argv[2])):
    writer.write(b"x" * 1_048_576)
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("files", ["local", "s3"], indirect=True)
def test_a_crash_in_the_middle_leaves_nothing_under_the_name(files, tmp_path):
    # Given a process in the middle of a large file
    url = f"file://{tmp_path}/files" if files.shared_paths else f"s3://{BUCKET}/some/prefix"
    writing = subprocess.Popen(
        [sys.executable, "-c", WRITES_AND_WAITS, url, "20"], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert writing.stdout.readline() == b"written\n"
    finally:
        # When it is killed
        writing.send_signal(signal.SIGKILL)
        writing.communicate()
    # Then nothing has the name, and the next writer is not disturbed
    with pytest.raises(FileMissing):
        files.size("uploads/1")
    files.put("uploads/1", b"next")
    assert files.load("uploads/1") == b"next"


def test_what_a_crash_left_aside_is_cleared_a_day_later(tmp_path):
    # Given what two crashes left, one long ago and one now
    aside = tmp_path / "files" / ".aside"
    aside.mkdir(parents=True)
    for name, age in (("old", 90_000), ("new", 60)):
        (aside / name).write_bytes(b"x")
        os.utime(aside / name, (time.time() - age, time.time() - age))
    # When another process writes its first file
    open_files(f"file://{tmp_path}/files").put("a", b"x")
    # Then only the old one is gone
    assert [path.name for path in aside.iterdir()] == ["new"]


def test_a_path_on_the_same_file_system_is_moved_not_copied(local, tmp_path):
    source = tmp_path / "made"
    source.write_bytes(b"x")
    inode = source.stat().st_ino
    local.put("jobs/1/kept", source)
    assert not source.exists()
    assert local.local("jobs/1/kept", tmp_path).stat().st_ino == inode


def test_a_path_that_others_may_still_change_is_copied(local, tmp_path):
    # Given a link, and a file with two names
    (tmp_path / "made").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "made")
    os.link(tmp_path / "made", tmp_path / "second-name")
    # When both are put
    local.put("a", tmp_path / "link")
    local.put("b", tmp_path / "second-name")
    # Then a later change does not reach the files
    (tmp_path / "made").write_bytes(b"changed")
    assert (local.load("a"), local.load("b")) == (b"x", b"x")
    assert (tmp_path / "link").is_symlink()


def test_links_that_lead_out_are_not_followed(local, tmp_path):
    # Given a folder outside, and links to it and to one of its files
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    local.put("a", b"x")
    (tmp_path / "files" / "out").symlink_to(outside)
    (tmp_path / "files" / "file").symlink_to(outside / "secret")
    # Then they are no files of ours
    for name in ("out/secret", "file", "out"):
        with pytest.raises(FileMissing):
            local.load(name)
        with pytest.raises(FileMissing):
            local.local(name, tmp_path)
    with pytest.raises((FilesUnavailable, FileMissing)):
        local.put("out/new", b"x")
    # And deleting stops at them
    local.delete("out/secret")
    local.delete("out/")
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_every_byte_is_synced_before_it_has_its_name_and_its_folders_after(local, tmp_path, monkeypatch):
    # Given a witness of what is synced and what is named
    seen, real = [], (os.fsync, os.replace)
    inside = tmp_path / "files"

    def fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        seen.append(("sync", str(path.relative_to(inside)) if path.is_dir() else "the bytes"))
        real[0](fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(("name", str(b.relative_to(inside)))), real[1](a, b)))
    (tmp_path / "made").write_bytes(b"x")
    for source in (b"x", tmp_path / "made"):
        # When something is put
        seen.clear()
        local.put("jobs/1/a", source)
        # Then the order is one that a power cut cannot split
        assert seen == [
            ("sync", "the bytes"),
            ("name", "jobs/1/a"),
            ("sync", "jobs/1"),
            ("sync", "jobs"),
            ("sync", "."),
        ]


def test_a_deletion_that_prunes_folders_does_not_disturb_a_writer(local):
    # Given one thread that keeps emptying the folder that another one fills
    broken: list[BaseException] = []

    def fill() -> None:
        try:
            for _ in range(300):
                local.put("jobs/1/deep/er/a", b"x")
        except BaseException as error:  # noqa: BLE001
            broken.append(error)

    filling = Thread(target=fill)
    filling.start()
    while filling.is_alive():
        local.delete("jobs/1/deep/er/a")
    filling.join()
    assert broken == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, mounted while the test runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        yield disk
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    else:
        yield None


def test_a_full_disk_is_said_and_leaves_nothing(small_disk, tmp_path, monkeypatch):
    if small_disk is None:  # not root: a process's own limit is the next best end of a disk
        small_disk = tmp_path
        _files_may_have(4 * MIB, monkeypatch)
    files = open_files(f"file://{small_disk}/files")
    files.put("before", b"x")
    # Given a writer, When the disk is full before it is done
    writer = files.writer("uploads/1")
    with pytest.raises(FilesFull):
        write_all(writer, [b"x" * MIB] * 5)
    # Then nothing of it is left, and what was there before still is
    with pytest.raises(FileMissing):
        files.size("uploads/1")
    assert files.load("before") == b"x"
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["before"]
    # And the same for a path, and for a ping
    (tmp_path / "large").write_bytes(b"x" * (3 * MIB))
    with pytest.raises(FilesFull):
        files.put("jobs/1/a", b"x" * (5 * MIB))
    assert [path.name for path in small_disk.rglob("*") if path.is_file() and path.name != "large"] == ["before"]


def _files_may_have(limit: int, monkeypatch) -> None:
    """Answer ENOSPC beyond `limit` bytes of one file, as a full disk does."""
    import errno

    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_size + len(data) > limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)


def test_a_full_disk_is_said_to_a_ping(small_disk, tmp_path, monkeypatch):
    if small_disk is None:
        small_disk = tmp_path
        monkeypatch.setattr("jobs.file_stores.local.SPARE_BYTES", 2**60)
    with pytest.raises(FilesFull):
        open_files(f"file://{small_disk}/files").ping()


def test_a_folder_that_cannot_be_made_is_out_of_reach(tmp_path):
    (tmp_path / "in-the-way").write_bytes(b"")
    files = open_files(f"file://{tmp_path}/in-the-way/files")
    for ask in (files.ping, lambda: files.writer("a"), lambda: files.put("a", b"x")):
        with pytest.raises(FilesUnavailable):
            ask()


# -- S3 ---------------------------------------------------------------------------------------------------------


def test_an_s3_that_does_not_answer_is_out_of_reach(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    files = open_files(f"s3://{BUCKET}")
    started = time.monotonic()
    for ask in (files.ping, lambda: files.size("a"), lambda: files.put("a", b"x")):
        with pytest.raises(FilesUnavailable):
            ask()
    assert time.monotonic() - started < 20


def test_an_s3_that_accepts_and_never_answers_is_told_soon_to_who_asks_and_who_scrapes(s3, monkeypatch):
    # Given the gauge of a sweeper whose S3 answers
    def is_up() -> float:
        [_, _, asked] = looks(None, None, open_files(f"s3://{BUCKET}"), ())
        [found] = asked.collect()
        assert found.name == "gristmill_files_up"
        return found.samples[0].value

    assert is_up() == 1
    # When it takes connections and says nothing
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(FilesUnavailable):
            open_files(f"s3://{BUCKET}").ping()
        # Then both say so
        assert is_up() == 0
        assert time.monotonic() - started < 2 * PING_S + 2


def test_a_missing_bucket_is_out_of_reach(s3):
    files = open_files("s3://no-such-bucket/prefix")
    for ask in (files.ping, lambda: files.put("a", b"x"), lambda: files.put("a", b"x" * (20 * MIB))):
        with pytest.raises(FilesUnavailable):
            ask()


def test_two_prefixes_of_a_bucket_do_not_see_each_other(s3):
    one, two = open_files(f"s3://{BUCKET}/one"), open_files(f"s3://{BUCKET}/two")
    one.put("jobs/1/a", b"1")
    two.put("jobs/1/a", b"2")
    one.delete("jobs/1/")
    assert two.load("jobs/1/a") == b"2"
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["two/jobs/1/a"]


def test_a_file_replaced_while_it_is_read_is_not_mixed_with_the_new_one(s3):
    files = open_files(f"s3://{BUCKET}")
    files.put("a", b"1" * (6 * MIB))
    reading = files.read("a")
    next(reading)
    files.put("a", b"2" * (6 * MIB))
    with pytest.raises(FilesUnavailable):
        list(reading)


USES_S3_FORKS_AND_USES_IT = """
import os, sys
from jobs.errors import FilesUnavailable
from jobs.files import open_files
open_files(sys.argv[1]).put("a", b"x")
if os.fork() == 0:
    try:
        open_files(sys.argv[1]).load("a")
    except FilesUnavailable:
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_process_forked_from_a_user_of_s3_is_told_so_instead_of_waiting_for_ever(s3):
    command = [sys.executable, "-c", USES_S3_FORKS_AND_USES_IT, f"s3://{BUCKET}"]
    told = subprocess.run(command, capture_output=True, timeout=30, cwd=Path(__file__).parents[2])
    assert told.stdout == b"7\n"
