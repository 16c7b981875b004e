"""What the text of an address tells: refused at the door, before anybody resolves a name."""

import pytest

from jobs.addresses import NOT_PUBLIC, Allowed, allowed, refusal

SOME = allowed(["files.lan", "*.corp.example", "127.0.0.1:8080", "10.0.0.0/8", "fd00::/8", "s3://in"])

NEVER_PUBLIC = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1%25eth0]/",
    "http://192.168.1.1/",
    "http://172.16.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://a.localhost/",
    "https://127.0.0.1:443/",
]


@pytest.mark.parametrize("url", [*NEVER_PUBLIC, "http://10.0.0.1/", "http://[fd00::1]/"])
def test_an_address_of_this_host_or_a_private_network_is_refused_however_it_is_written(url):
    assert refusal(url, Allowed()) == NOT_PUBLIC


@pytest.mark.parametrize(
    "url", ["http://example.org/a", "https://93.184.216.34/", "http://[2606:4700::1111]/", "http://1.2.3.4.5/"]
)
def test_a_public_address_or_a_name_is_left_to_the_worker(url):
    assert refusal(url, Allowed()) is None


def test_what_is_no_address_is_refused():
    strange = ["http://a b/", "http://one.example\\@127.0.0.1/", "http://x:99999/", "http://x:port/", "http://[::1/"]
    assert {refusal(url, SOME) for url in strange} == {"This is not an address that can be read."}
    assert {refusal(url, SOME) for url in ("file:///etc/passwd", "gopher://x/", "ftp://x/", "/etc/passwd")} == {
        "Only http://, https:// and s3:// are fetched."
    }
    assert "no user name or password" in refusal("http://user:secret@example.org/", SOME)
    assert refusal("http:///path", SOME) == "The address names no host."


@pytest.mark.parametrize(
    ("url", "open_"),
    [
        ("http://files.lan/a", True),
        ("http://FILES.LAN:8000/a", True),
        ("http://a.corp.example/", True),
        ("http://127.0.0.1:8080/", True),
        ("http://127.0.0.1:8081/", False),
        ("http://10.1.2.3/", True),
        ("http://167772161/", True),
        ("http://[::ffff:10.1.2.3]/", False),
        ("http://[fd00::1]/", True),
        ("http://192.168.0.1/", False),
        ("http://files.lan.evil.example@127.0.0.1/", False),
        ("s3://in/some/key", True),
        ("s3://in", False),
        ("s3://in/", False),
        ("s3://out/some/key", False),
    ],
)
def test_the_setting_opens_what_it_names_and_nothing_else(url, open_):
    assert (refusal(url, SOME) is None) is open_


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "s3://", "s3://bucket/prefix", "*", "a/b", "*.", "a.*", ":"])
def test_an_entry_that_is_none_of_these_is_refused_at_the_start(entry):
    with pytest.raises(ValueError):
        allowed([entry])
