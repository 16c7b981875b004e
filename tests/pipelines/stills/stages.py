"""A single picture a job, so that what a batch of jobs costs is the detector and little else."""

import cv2
import numpy as np

from celery_worker.pipelines.video.detect import MODEL, SIDE, answers, letterbox, suppressed
from celery_worker.pipelines.video.stages import probe

MODELS = {"look": (MODEL,)}
PROBE = {"look": probe}


def look(bench, given):
    """What is in the picture of one job."""
    return look_batch([bench], [given])[0]


def look_batch(benches, givens):
    """What is in the pictures of several, in one call."""
    pictures = [cv2.cvtColor(cv2.imread(bench.params["picture"]), cv2.COLOR_BGR2RGB) for bench in benches]
    frames = np.zeros((len(pictures), SIDE, SIDE, 3), np.uint8)
    for picture, frame in zip(pictures, frames, strict=True):
        letterbox(picture, False, frame)
    found = answers(benches[0].model(MODEL), frames, len(frames))
    return [
        {"found": suppressed(answer, (picture.shape[1], picture.shape[0]), 0.4, frozenset()), "together": len(benches)}
        for answer, picture in zip(found, pictures, strict=True)
    ]
