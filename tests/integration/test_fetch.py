"""Fetching over real sockets: what comes is whole or refused, and nothing but public hosts is ever reached."""

from __future__ import annotations

import gzip
import hashlib
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from itertools import count

import boto3
import pytest
from moto.server import ThreadedMotoServer

from celery_worker.fetch import Terms, fetch
from celery_worker.inputs import fetch_into
from jobs.addresses import NOT_PUBLIC, allowed
from jobs.errors import BadInput, TryAgain
from tests.web import Web, body_of, head, leads_to, raw, status

DATA = bytes(range(256)) * 4_000  # 1,024,000 bytes
HALF = len(DATA) // 2
PUBLIC = "93.184.216.34"


@pytest.fixture
def get(tmp_path):
    """A factory: `get(web, "/path")` fetches from that server, which ALLOWED_HOSTS names."""

    def fetched(web, path="/a", hosts=None, most_bytes=2_000_000, within_s=20.0):
        terms = Terms(allowed([web.host] if hosts is None else hosts), most_bytes, within_s)
        folder = tmp_path / "into"
        try:
            return fetch_into(folder, web.url + path, terms, lambda: None, {})
        except BaseException:
            assert not [file for file in folder.rglob("*") if file.is_file()]  # a refused transfer leaves nothing
            raise

    return fetched


def refused(kind, call, *args, **how):
    with pytest.raises(kind) as caught:
        call(*args, **how)
    return str(caught.value)


# -- what comes ------------------------------------------------------------------------------------------------


def test_a_file_is_streamed_to_disk_with_what_it_is(get):
    png = b"\x89PNG\r\n\x1a\n" + DATA
    with Web({"/a": body_of(png, Content_Type="video/mp4", X_Some="thing")}) as web:
        found = get(web)
    # Then its first bytes tell its type, whatever its sender said
    assert (found.type, found.bytes, found.url) == ("image/png", len(png), web.url + "/a")
    assert found.path.read_bytes() == png
    assert found.sha256 == hashlib.sha256(png).hexdigest()
    assert found.headers["x-some"] == "thing"
    # Then the host was asked by its name and port, without anything of ours
    [(_, headers)] = web.asked
    assert (headers["host"], headers["accept-encoding"]) == (web.host, "identity")
    assert not {"authorization", "cookie", "x-forwarded-for"} & set(headers)


def test_chunks_and_compression_are_undone(get):
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (DATA[:HALF], DATA[HALF:]))
    pages = {
        "/chunks": raw(head(200, Transfer_Encoding="chunked"), pieces, b"0\r\n\r\n"),
        "/gzip": body_of(gzip.compress(DATA), Content_Encoding="gzip"),
    }
    with Web(pages) as web:
        assert [get(web, path).sha256 for path in pages] == [hashlib.sha256(DATA).hexdigest()] * 2


def test_a_coding_that_nobody_asked_for_is_not_taken_for_the_file(get):
    with Web({"/a": body_of(b"\x0b\x02\x80junk\x03", Content_Encoding="br")}) as web:
        assert refused(BadInput, get, web) == "127.0.0.1 sent it in the coding br, which was not asked for."


def test_a_redirect_is_followed(get):
    with Web({"/a": leads_to("/b/c"), "/b/c": leads_to("d"), "/b/d": body_of(DATA)}) as web:
        assert get(web).url == web.url + "/b/d"


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"Last_Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}])
def test_a_broken_transfer_is_resumed_where_it_broke(get, validator):
    # Given a host that breaks off in the middle, and knows ranges
    turns = count()

    def answer(request):
        if next(turns) == 0:
            request.wfile.write(head(200, Content_Length=str(len(DATA)), **validator) + DATA[:HALF])
        else:
            begin = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
            rest = DATA[begin:]
            said = {"Content_Range": f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}", "Content_Length": str(len(rest))}
            request.wfile.write(head(206, **said, **validator) + rest)

    with Web({"/a": answer}) as web:
        found = get(web)
    # Then only the rest is asked for, if the file is still the same
    assert found.sha256 == hashlib.sha256(DATA).hexdigest()
    assert web.asked[1][1]["range"] == f"bytes={HALF}-"
    assert web.asked[1][1]["if-range"] == next(iter(validator.values()))


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {}])
def test_a_transfer_that_cannot_be_resumed_begins_anew(get, validator):
    # Given a file that changes after the first half of it
    turns = count()

    def answer(request):
        if next(turns) == 0:
            request.wfile.write(head(200, Content_Length=str(len(DATA)), **validator) + DATA[:HALF])
        else:
            request.wfile.write(head(200, Content_Length="3") + b"new")

    with Web({"/a": answer}) as web:
        found = get(web)
    assert found.path.read_bytes() == b"new"


# -- what is refused -------------------------------------------------------------------------------------------


def test_an_endless_body_ends_at_the_limit(get):
    def endless(request):
        request.wfile.write(head(200))
        while True:
            request.wfile.write(DATA)

    with Web({"/a": endless}) as web:
        assert "larger than 2,000,000 bytes" in refused(BadInput, get, web)
        assert len(web.asked) == 1


def test_a_small_body_that_unpacks_to_a_large_one_ends_at_the_limit(get):
    bomb = gzip.compress(bytes(30_000_000))
    with Web({"/a": body_of(bomb, Content_Encoding="gzip")}) as web:
        assert len(bomb) < 100_000
        assert "larger than 2,000,000 bytes" in refused(BadInput, get, web)


def test_a_content_length_over_the_limit_is_refused_unread(get):
    with Web({"/a": raw(head(200, Content_Length="1000000000000"), lambda: time.sleep(30))}) as web:
        began = time.monotonic()
        assert "larger than" in refused(BadInput, get, web)
        assert time.monotonic() - began < 15


def test_a_content_length_that_lies_is_a_broken_transfer(get):
    with Web({"/a": raw(head(200, Content_Length=str(len(DATA))), DATA[:1_000])}) as web:
        assert "The connection broke" in refused(TryAgain, get, web)
        assert len(web.asked) == 2


def test_a_host_that_answers_with_another_piece_is_not_believed(get):
    def answer(request):
        if "range" not in request.headers:
            request.wfile.write(head(200, Content_Length=str(len(DATA)), ETag='"1"') + DATA[:HALF])
        else:
            request.wfile.write(head(206, Content_Range="bytes 0-99/1024000", Content_Length="100") + DATA[:100])

    with Web({"/a": answer}) as web:
        assert "another piece" in refused(TryAgain, get, web)


@pytest.mark.parametrize("where", ["body", "headers"])
def test_a_host_that_drips_is_left_when_the_time_is_over(get, where):
    def drip(request):
        request.wfile.write(head(200) if where == "body" else b"HTTP/1.1 200 x\r\n")
        while True:
            request.wfile.write(b"x" if where == "body" else b"X-More: x\r\n")
            time.sleep(0.05)

    with Web({"/a": drip}) as web:
        began = time.monotonic()
        assert refused(BadInput, get, web, within_s=1.0) == "Fetching took longer than 1 s."
        assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("code", "kind"), [(404, BadInput), (403, BadInput), (204, BadInput), (429, TryAgain), (500, TryAgain)]
)
def test_a_status_is_told_but_never_what_stands_under_it(get, code, kind):
    page = status(code, b"" if code == 204 else b"the inner page")
    with Web({"/a": page}) as web, pytest.raises(kind) as caught:
        get(web)
    assert caught.value.fields["http_status"] == code
    assert str(caught.value).startswith(f"127.0.0.1 answered {code}")
    assert "inner" not in str(caught.value)


def test_an_empty_file_and_a_circle_are_refused(get):
    with Web({"/empty": body_of(b""), "/a": leads_to("/b"), "/b": leads_to("/a")}) as web:
        assert "is empty" in refused(BadInput, get, web, "/empty")
        assert "more than 5 times" in refused(BadInput, get, web)


def test_nobody_listens_or_nobody_is_called_that(get):
    with Web({}) as web:
        pass
    assert "The connection broke" in refused(TryAgain, get, web)
    terms = Terms(allowed(["no-such-host.invalid"]), 100, 5)
    with pytest.raises((BadInput, TryAgain)):  # a resolver out of reach says: later
        fetch("http://no-such-host.invalid/", lambda: pytest.fail("written"), terms)


def test_a_certificate_that_nobody_signed_is_refused(get, tmp_path):
    with Web({"/a": body_of(DATA)}, tls=_self_signed(tmp_path)) as web:
        assert refused(BadInput, get, web) == "127.0.0.1: its certificate cannot be trusted."
        assert web.asked == []


# -- who is never reached --------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch):
    """What names resolve to: `names["a.example"] = [first answer, second answer, ...]`; the last one stays."""
    known: dict[str, list[str]] = {}
    really = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **how):
        if host in known:
            answers = known[host]
            host = answers.pop(0) if len(answers) > 1 else answers[0]
        return really(host, port, *args, **how)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def dialled(monkeypatch):
    """Where connections were opened to; those to addresses elsewhere fail at once, as without a route."""
    from urllib3.util import connection

    found: list[str] = []
    really = connection.create_connection

    def create_connection(address, *args, **how):
        found.append(address[0])
        if address[0] == PUBLIC:
            raise OSError("no route to host")
        return really(address, *args, **how)

    monkeypatch.setattr(connection, "create_connection", create_connection)
    return found


@pytest.mark.parametrize("leads", ["127.0.0.1", "169.254.169.254", "10.0.0.8", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_that_leads_inside_is_refused_before_a_connection(get, names, dialled, leads):
    names["inside.example"] = [leads]
    with Web({"/a": body_of(DATA)}) as web:
        web_by_name = _named(web, "inside.example")
        assert refused(BadInput, get, web_by_name, hosts=[]) == NOT_PUBLIC
        assert (web.asked, dialled) == ([], [])


def test_a_decimal_address_is_refused_where_only_the_resolver_knows_it(get, monkeypatch, dialled):
    # Given a text check that overlooks it
    monkeypatch.setattr("celery_worker.fetch.refusal", lambda *_: None)
    with Web({"/a": body_of(DATA)}) as web:
        for host in ("2130706433", "0x7f.1", "127.1", "localhost"):
            assert refused(BadInput, get, _named(web, host), hosts=[]) == NOT_PUBLIC
        assert (web.asked, dialled) == ([], [])


def test_a_name_that_resolves_differently_the_second_time_is_reached_where_it_was_checked(get, names, dialled):
    # Given a name that is public when it is checked, and this host afterwards
    names["turns.example"] = [PUBLIC, "127.0.0.1"]
    with Web({"/a": body_of(DATA)}) as web:
        # When it is fetched, Then the connection goes to the checked address, and trying once more is refused
        assert refused(BadInput, get, _named(web, "turns.example"), hosts=[]) == NOT_PUBLIC
        assert (web.asked, dialled) == ([], [PUBLIC])


def test_a_name_with_one_public_and_one_inner_address_is_refused(get, monkeypatch, dialled):
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in (PUBLIC, "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with Web({"/a": body_of(DATA)}) as web:
        assert refused(BadInput, get, _named(web, "both.example"), hosts=[]) == NOT_PUBLIC
        assert dialled == []


def test_a_connection_that_ends_up_inside_is_closed_unused(get, names, monkeypatch):
    # Given a policy that lets everything through
    monkeypatch.setattr("AntiSSRF.AntiSSRFPolicy._is_network_connection_allowed", lambda *_: True)
    names["inside.example"] = ["127.0.0.1"]
    with Web({"/a": body_of(DATA)}) as web:
        assert refused(BadInput, get, _named(web, "inside.example"), hosts=[]) == NOT_PUBLIC
        assert web.asked == []


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/inner",
        "http://2130706433:{port}/inner",
        "http://[::ffff:127.0.0.1]:{port}/inner",
        "http://inside.example:{port}/inner",
        "http://169.254.169.254/",
        "//inside.example:{port}/inner",
        "file:///etc/passwd",
        "s3://incoming/key",
    ],
)
def test_a_redirect_leads_nowhere_that_the_address_itself_could_not(get, names, target):
    # Given an allowed host that redirects to one that is not
    names["inside.example"], names["front.example"] = ["127.0.0.1"], ["127.0.0.1"]
    with Web({"/inner": body_of(DATA)}) as inner, Web({"/a": leads_to(target.format(port=inner.port))}) as web:
        front = _named(web, "front.example")
        with pytest.raises(BadInput):
            get(front, hosts=["front.example", "s3://incoming"])
        assert inner.asked == []
        assert len(web.asked) == 1


def test_a_network_can_be_allowed(get, names):
    names["files.example"] = ["127.0.0.1"]
    with Web({"/a": body_of(DATA)}) as web:
        assert get(_named(web, "files.example"), hosts=["127.0.0.0/8"]).bytes == len(DATA)
        assert web.asked[0][1]["host"] == f"files.example:{web.port}"


def test_proxies_and_passwords_of_the_environment_are_not_used(get, monkeypatch, tmp_path):
    with Web({}) as proxy, Web({"/a": body_of(DATA)}) as web:
        (tmp_path / "netrc").mkdir()
        (tmp_path / "netrc" / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc" / ".netrc"))
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert get(web).bytes == len(DATA)
        assert proxy.asked == []
        assert "authorization" not in web.asked[0][1]


# -- S3 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch):
    """A bucket `incoming` with `some/key`; the credentials are in the environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for bucket in ("incoming", "other"):
        client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="some/key with space", Body=b"\x89PNG\r\n\x1a\n" + DATA)
    yield client
    server.stop()


def test_an_object_is_read_from_a_bucket_that_is_allowed_and_from_no_other(s3, tmp_path):
    terms = Terms(allowed(["s3://incoming"]), 2_000_000, 20)
    found = fetch_into(tmp_path, "s3://incoming/some/key%20with%20space", terms, lambda: None, {})
    assert (found.type, found.bytes) == ("image/png", len(DATA) + 8)
    for url, why in [
        ("s3://other/some/key%20with%20space", "not in ALLOWED_HOSTS"),
        ("s3://incoming/absent", "no object of that key"),
        ("s3://incoming/a/../../x", "not one that can be read"),
    ]:
        assert why in refused(BadInput, fetch_into, tmp_path, url, terms, lambda: None, {})
    small = terms.within(1_000, None)
    assert "larger than 1,000 bytes" in refused(
        BadInput, fetch_into, tmp_path, "s3://incoming/some/key%20with%20space", small, lambda: None, {}
    )


def _named(web, name):
    """The server under another name."""

    class Named:
        host, url, port = f"{name}:{web.port}", f"http://{name}:{web.port}", web.port

    return Named


def _self_signed(folder):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), today, today + timedelta(1)
    )
    (folder / "tls").mkdir()
    (folder / "tls" / "cert").write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls" / "cert")
    return context
