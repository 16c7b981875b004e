"""Makes the PDFs that the tests read, whole and damaged ones, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence


def pdf(pages: Sequence[str], *, kids: str | None = None) -> bytes:
    """A PDF with a line of text for each line of each page. `kids` overrides the list of pages in their tree."""
    count = len(pages)
    tree = kids or " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Count {count} /Kids [{tree}] >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    }
    for n, page in enumerate(pages):
        shown = "T*".join(f"({_escaped(line)}) Tj " for line in page.split("\n"))
        content = f"BT /F1 12 Tf 14 TL 72 720 Td {shown}ET".encode("cp1252")
        objects[4 + 2 * n] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        ).encode()
        objects[5 + 2 * n] = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    return assembled(objects)


def assembled(objects: dict[int, bytes]) -> bytes:
    """Objects as a file, with the table that says where each is."""
    out, places = bytearray(b"%PDF-1.7\n"), {}
    for number, body in objects.items():
        places[number] = len(out)
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table, last = len(out), max(objects)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (last + 1)
    for number in range(1, last + 1):
        out += b"%010d 00000 n \n" % places.get(number, 0)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (last + 1, table)
    return bytes(out)


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
