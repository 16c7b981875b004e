"""What a document's text is, whatever the document is made of."""

import io
import signal
import subprocess
import sys
import time
import zipfile
import zlib

import pytest
from pypdf import PdfReader, PdfWriter

from celery_worker.pipelines.document import read
from celery_worker.pipelines.document.papers import assembled, pdf
from celery_worker.pipelines.document.read import read_file, read_text
from jobs.errors import BadInput

STORY = "The old mill stands by the river. Every autumn the farmers bring their grain, and the miller grinds it."
RUSSIAN = "Мельница стоит у реки, и каждый год крестьяне везут туда зерно, а мельник мелет муку."  # noqa: RUF001
PAGE = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title> The  mill </title>
<style>p {{}}</style></head><body><nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>
<article><h1>A day at the mill</h1>
{"".join(f"<p>{STORY} It was day {n}.</p>" for n in range(5))}</article><script>var x = "never seen";</script>
<footer>Copyright, imprint and cookies</footer></body></html>"""


def of(tmp_path, data: bytes):
    file = tmp_path / "document"
    file.write_bytes(data)
    return read_file(file, lambda: None)


def refusal(tmp_path, data: bytes) -> str:
    with pytest.raises(BadInput) as refused:
        of(tmp_path, data)
    return str(refused.value)


def encrypted(password: str) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf([STORY]))))
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_a_pdf_is_read_page_by_page_and_its_offsets_are_true(tmp_path):
    # Given three pages, one of them empty, with words cut at the end of a line
    found = of(tmp_path, pdf(["The mill grinds wheat and bar-\nley all\nday long.", "", "The end (of it)."]))
    # Then each page is where it is said to be, and the words are whole again
    pages = [found.text[start:end] for start, end in found.pages]
    assert (found.kind, pages) == ("pdf", ["The mill grinds wheat and barley all day long.", "", "The end (of it)."])


def test_a_page_of_the_web_is_its_main_text(tmp_path):
    found = of(tmp_path, PAGE.encode())
    assert (found.kind, found.title) == ("html", "The mill")
    assert found.text.count(STORY) == 5
    assert not any(word in found.text for word in ("never seen", "Copyright", "Shop"))


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "Käse für Zoë"),
        ("utf-8-sig", "Käse für Zoë"),
        ("utf-16", "Käse für Zoë"),
        ("cp1252", "Käse für Zoë, „schön“ und süß, größer als Öl über Äcker und Flüsse."),
        ("cp1252", "Le café de José à Málaga est ouvert."),
        ("cp1252", "São Paulo: corações, 30 °C. ¿Qué hora es? ¡Olé! Don\u2019t worry."),
        ("cp1250", "Zażółć gęślą jaźń, powiedział Łukasz do kolegi w mieście Łódź."),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
        ("cp1250", "Árvíztűrő tükörfúrógép és még sok más őszi szöveg."),
        ("koi8-r", RUSSIAN),
        ("utf-16-le", "Käse für Zoë"),
        ("utf-16-be", "Käse für Zoë"),
    ],
)
def test_a_text_is_read_in_the_charset_that_it_has(tmp_path, charset, text):
    assert of(tmp_path, text.encode(charset)).text == text


@pytest.mark.parametrize(
    ("declared", "real"),
    [("iso-8859-1", "utf-8"), ("no-such-charset", "utf-8"), ("utf-8", "cp1252"), ("cp1252", "cp1252")],
)
def test_a_page_that_lies_about_its_charset_is_read_all_the_same(tmp_path, declared, real):
    text = "Käse für Zoë, ein Stück „Brot“."
    page = f'<html><head><meta charset="{declared}"><title>x</title></head><body><p>{text}</p></body></html>'
    assert of(tmp_path, page.encode(real)).text == text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        # A short page with a menu, of which the extractor makes a line for each piece between two tags
        (
            "<nav>Home</nav><p>Barack Obama visited <b>Berlin</b> in 2013.<p>He <i>loved</i> it, he said, loved it.",
            "Home\n\nBarack Obama visited Berlin in 2013.\n\nHe loved it, he said, loved it.",
        ),
        ("<nav>Home</nav><table><tr><th>City</th><th>Land</th></tr></table><dl><dt>Name</dt><dd>An<b>na</b></dd></dl>",
         "Home\n\nCity\n\nLand\n\nName\n\nAnna"),
    ],
)  # fmt: skip
def test_a_sentence_on_a_page_is_not_broken_at_its_tags(tmp_path, page, text):
    assert of(tmp_path, f"<html><body>{page}</body></html>".encode()).text == text


def test_characters_that_nobody_can_store_are_replaced_one_by_one():
    # Given a text with a NUL, a lone surrogate and a mark of byte order in it
    text = "The \x00 mill \ud83d grinds \ufeff on, \U0001f33e."
    # Then all others stand where they stood
    assert read_text(text).text == "The \ufffd mill \ufffd grinds \ufffd on, \U0001f33e."


@pytest.mark.parametrize("text", ["", "   \n\n\t", "\x00\x00", "\ud800", "... --- !!!", "\f\f"])
def test_what_has_no_text_is_refused(text):
    with pytest.raises(BadInput, match="There is no text in the document"):
        read_text(text)


def test_a_scanned_pdf_says_why_it_is_refused(tmp_path):
    assert refusal(tmp_path, pdf(["", ""])).endswith("Pages that are pictures are not read.")


def test_a_file_that_is_no_document_is_refused(tmp_path):
    assert (
        refusal(tmp_path, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 20)
        == "The file is neither text nor HTML nor PDF."
    )


def test_200_pages_are_read_and_201_are_not(tmp_path):
    assert len(of(tmp_path, pdf([f"Page {n}." for n in range(200)])).pages) == 200
    assert refusal(tmp_path, pdf([f"Page {n}." for n in range(201)])) == "The PDF has 201 pages; at most 200 are read."
    with pytest.raises(BadInput, match="201 pages"):
        read_text("\f".join(["Page."] * 201))


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(BadInput, match="1000001 characters"):
        read_text("a " * 500_000 + "b")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    # Given files without an end in sight, of which only the first bytes are there
    for head, told in (
        (b"%PDF-1.7\n", "The document is larger than 104857600 bytes."),
        (b"A word. ", "The document has more than 1000000 characters of text; no more are read."),
    ):
        (tmp_path / "large").write_bytes(head)
        with (tmp_path / "large").open("r+b") as file:
            file.truncate(104_857_601 if head.startswith(b"%") else 90_000_000)
        # Then that is said at once
        began = time.process_time()
        with pytest.raises(BadInput) as refused:
            read_file(tmp_path / "large", lambda: None)
        assert str(refused.value) == told
        assert time.process_time() - began < 0.5


def test_a_page_and_a_pdf_with_too_much_text_are_refused(tmp_path):
    page = b"<html><body>" + b"<p>word word word</p>" * 70_000
    assert refusal(tmp_path, page) == "The page has more than 1000000 characters of text."
    paper = pdf(["\n".join(["word " * 20] * 60)] * 190)
    assert refusal(tmp_path, paper) == "The PDF has more than 1000000 characters of text."


def test_a_pdf_that_unpacks_without_end_is_refused(tmp_path):
    # Given a page of 1.6 MB that unpacks to 300 MB
    bomb = zlib.compress(b"(x) Tj " * 43_000_000, 1)
    paper = assembled(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
            4: b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(bomb), bomb),
        }
    )
    assert len(paper) < 3_000_000
    # Then the parser stops there, and what is left has no text
    assert refusal(tmp_path, paper).startswith("There is no text in the document.")


@pytest.mark.parametrize("name", ["letter.docx", "letter.odt"])
def test_an_office_document_is_refused(tmp_path, name):
    # Given a zip of text
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("content.xml", bytes(1 << 20))
    assert refusal(tmp_path, (tmp_path / name).read_bytes()) == "The file is neither text nor HTML nor PDF."


@pytest.mark.parametrize(
    ("limit", "greed", "ends"),
    [
        ("MEMORY_BYTES = 500_000_000", "len(bytearray(1 << 31))", lambda code: code == 1),
        ("READ_S = 1.0", "max(iter(int, 1))", lambda code: code == -signal.SIGXCPU),
    ],
)
def test_the_parser_s_process_has_limits_of_its_own(tmp_path, limit, greed, ends):
    # Given a parser that takes two gigabytes, or never ends
    code = "from celery_worker.pipelines.document import parse as p\n"
    code += f"p.{limit}\np.html = lambda _: {greed}\np.main(['html', 'x'])"
    (tmp_path / "x").write_bytes(b"")
    # Then it is its own kernel's limits that end it
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(read.ROOT)}, capture_output=True, timeout=60
    )
    assert ends(ended.returncode), ended.stderr[-300:]
    assert ended.returncode < 0 or b"MemoryError" in ended.stderr


def test_an_encrypted_pdf_is_refused_and_one_without_a_password_is_read(tmp_path):
    assert refusal(tmp_path, encrypted("secret")) == "The PDF is encrypted; send it without a password."
    assert of(tmp_path, encrypted("")).text == STORY


@pytest.mark.parametrize(
    "data",
    [
        pdf(["A page."], kids="2 0 R"),  # the tree of pages is its own child
        pdf(["A page."], kids="4 0 R 2 0 R"),
        pdf(["A page."]).replace(b"/Contents 5 0 R", b"/Contents 4 0 R"),
        pdf(["A page."])[:150],
        b"%PDF-1.7\n" + b"<<" * 200_000,
        b"%PDF-1.7\n" + b"[" * 200_000 + b"\ntrailer << /Root 1 0 R >>",
        assembled({1: b"<< /Type /Catalog /Pages 1 0 R >>"}),
        b"%PDF-1.7 and nothing else",
    ],
    ids=["loop", "loop-behind-a-page", "page-as-content", "cut-off", "dictionaries", "arrays", "catalog", "empty"],
)
def test_a_pdf_that_bites_is_one_refused_document(tmp_path, data):
    began = time.monotonic()
    with pytest.raises(BadInput):
        of(tmp_path, data)
    assert time.monotonic() - began < 60


def test_a_parser_that_does_not_end_is_ended(tmp_path):
    # Given a page whose elements stand in each other so deep that extraction takes minutes
    (tmp_path / "page").write_bytes(b"<html><body>" + b"<p><b>" * 50_000 + b"word " * 50)
    # When it is not given the time
    found = read.aside("html", tmp_path / "page", lambda: None, within_s=0.01)
    # Then that is what is said of it
    assert found == {"error": "The HTML cannot be read within 0.01 s."}


def test_a_page_nested_without_end_still_shows_its_text(tmp_path):
    began = time.monotonic()
    for page in ("<div>" * 100_000 + "deep inside" + "</div>" * 100_000, "<html><p><b>" * 50_000 + "deep inside"):
        assert of(tmp_path, page.encode()).text == "deep inside"
    assert time.monotonic() - began < 60


def test_a_job_that_ends_takes_its_parser_along(tmp_path):
    (tmp_path / "page").write_bytes(PAGE.encode())

    def dismissed() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        read_file(tmp_path / "page", dismissed)
