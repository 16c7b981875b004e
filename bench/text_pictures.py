"""The pictures in docs/pipelines/ of document, wordcount and onboarding, of real results; needs chromium.

`python -m bench.text_pictures`
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from bench.document import PAGE, labelled
from bench.examples import PIPELINES, SERVED_AS, Street
from celery_worker.testing import run

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
STYLE = "body{margin:0;padding:24px;background:#f4f5f7;color:#1d2330;font:14px/1.6 system-ui,sans-serif}"
STYLE += "pre,.card{background:#fff;border:1px solid #dde1e7;border-radius:6px;padding:16px;margin:0 0 16px}"
STYLE += ".row{display:grid;grid-template-columns:7rem 1fr 3rem;gap:8px;align-items:center}i{display:block;height:10px;"
STYLE += "border-radius:3px;background:#4c6fb1}"


def main() -> int:
    """Run each pipeline once, and picture what came of it."""
    with tempfile.TemporaryDirectory(prefix="gristmill-pictures-") as folder:
        text, _ = labelled(PAGE.read_text())
        done = run(PIPELINES / "document", {"key_sentences": 3}, input={"text": text})
        shoot(Path(folder), "document", done.artifacts["highlighted.html"].read_text(), (940, 900))
        with Street(Path(folder)) as street:
            os.environ.update(street.environment)
            shoot(Path(folder), "wordcount", words(street), (820, 530))
            shoot(Path(folder), "onboarding", welcome(street), (820, 560))
    return 0


def words(street: Street) -> str:
    """The sample site's most frequent words, and its pages."""
    url = f"{street.site_url}index.html"
    params = {"depth": 2, "pause": 0.1, "top": 8}
    found = run(PIPELINES / "wordcount", params, input={"url": url}, allowed_hosts=("127.0.0.1",)).result
    most = found["top"][0][1]
    bars = "".join(
        f'<div class="row"><span>{escape(word)}</span><i style="width:{100 * n / most:.0f}%"></i>{n}</div>'
        for word, n in found["top"]
    )
    pages = "".join(
        f"<li>{escape(page['title'])} ({page['language']}): {page['words']} words</li>" for page in found["per_page"]
    )
    left = "".join(f"<li>{escape(one['url'])}: {escape(one['why'])}</li>" for one in found["skipped"])
    body = f'<div class="card">{bars}</div><div class="card"><ul>{pages}</ul>Left out:<ul>{left}</ul></div>'
    return body.replace(street.site_url, SERVED_AS)


def welcome(street: Street) -> str:
    """The result, and the mail as it arrived."""
    example: Mapping[str, Any] = json.loads((PIPELINES / "onboarding" / "example.json").read_text())
    result = run(PIPELINES / "onboarding", example["params"]).result
    mail = street.mails[-1]
    head = "\n".join(f"{name}: {mail[name]}" for name in ("From", "To", "Subject", "Message-ID"))
    return f"<pre>{escape(json.dumps(result, indent=2))}</pre><pre>{escape(head)}\n\n{escape(mail.get_content())}</pre>"


def shoot(folder: Path, name: str, page: str, size: tuple[int, int]) -> None:
    """Let a browser look at a page."""
    file, taken = folder / f"{name}.html", folder / f"{name}.png"
    file.write_text(page if page.startswith("<!doctype") else f"<!doctype html><style>{STYLE}</style>{page}")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/browser"]
    subprocess.run(
        ["chromium", *flags, f"--window-size={size[0]},{size[1]}", f"--screenshot={taken}", file.as_uri()],
        check=True,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    shutil.move(taken, PICTURES / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
