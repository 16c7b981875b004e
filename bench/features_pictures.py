"""Makes the pictures of docs/pipelines/features.md from the samples, by the pipeline itself.

`python -m bench.features_pictures`; run it again when the pipeline draws something else.
"""

from __future__ import annotations

import sys

import cv2

from bench.features import BANDS, FOLDER, SAMPLES
from bench.servers import ROOT
from celery_worker.testing import run

TO = ROOT / "docs" / "pictures"
PICTURES = {
    "features-park": ("rotterdam-park.tif", {"bands": BANDS, "classes": ["vegetation", "canopy", "bright-impervious"]}),
    "features-harbour": ("rotterdam-harbour.tif", {"bands": BANDS, "classes": ["water", "vegetation"]}),
}


def main() -> int:
    """Each as a JPEG."""
    for name, (sample, params) in PICTURES.items():
        done = run(FOLDER, params, [SAMPLES / sample])
        cv2.imwrite(
            str(TO / f"{name}.jpg"), cv2.imread(str(done.artifacts["preview.png"])), [cv2.IMWRITE_JPEG_QUALITY, 85]
        )
        print(name, done.result["counts"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
