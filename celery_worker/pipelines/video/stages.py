"""Find, follow and picture what is in videos and pictures: preprocess decodes, inference looks, postprocess draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from celery_worker.confined import confined
from celery_worker.pipelines.video import track
from celery_worker.pipelines.video.annotations import Seen, as_coco, as_csv, as_lines, as_mot
from celery_worker.pipelines.video.decode import sampling
from celery_worker.pipelines.video.detect import MODEL, SIDE, Answer, Detection, answers, answers_ahead, suppressed
from celery_worker.pipelines.video.export import write_zip
from celery_worker.pipelines.video.finish import count_of, finish, result_of
from celery_worker.pipelines.video.persons import MODEL as BODY
from celery_worker.pipelines.video.persons import bodies
from celery_worker.pipelines.video.render import TELL_EVERY, Job
from celery_worker.pipelines.video.sources import Source, sources
from celery_worker.pipelines.video.split import Clock, Counter, split
from celery_worker.pipelines.video.tasks import LOOKS
from celery_worker.workbench import Workbench
from jobs.errors import BadInput

MODELS = {"inference": (MODEL, BODY)}  # warmed up before a worker takes such work
WARM_UP = {"postprocess": track.warm_up}
PERSON = "person"


@confined
def preprocess(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """Bring each source to a constant rate and the model's size; emit segments while still decoding."""
    clock, counter = Clock(), Counter()
    job = asked(bench)
    found = sources(bench)
    decoded = []
    for source in found:
        with named(source, len(found)):
            decoded.append(split(bench, job, source, counter, clock))
    return {
        "sources": decoded,
        "frames": counter.frames,
        "segments": counter.parts,
        "seconds": clock.seconds(),
    }


def inference(bench: Workbench, segment: Mapping[str, Any]) -> dict[str, Any]:
    """Detect objects in each frame of one segment, in pixels of the source; look closer at persons if that is asked."""
    clock = Clock()
    frames = _frames(bench, segment)
    found: list[list[Detection]] = []
    said: Generator[Answer, None, None]
    if bench.batch > 1:
        said = answers_ahead(bench.model(MODEL), frames, bench.batch, bench.checkpoint)
    else:
        said = answers(bench.model(MODEL), frames, 1)
    with closing(said):
        for answer in said:
            found.append(_detections(bench, segment, answer))
            if len(found) % TELL_EVERY == 0:
                bench.progress(len(found), len(frames))
    return _seen(bench, segment, found, clock)


def inference_batch(benches: Sequence[Workbench], segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same for several small segments, of one job or of many: their frames share the calls of the detector."""
    clock = Clock()
    frames = [_frames(bench, segment) for bench, segment in zip(benches, segments, strict=True)]
    said = answers(benches[0].model(MODEL), np.concatenate(frames), benches[0].batch)
    found = []
    for bench, segment, own in zip(benches, segments, frames, strict=True):
        found.append([_detections(bench, segment, answer) for answer in itertools.islice(said, len(own))])
        bench.checkpoint()
    # Each says its share of the common calls, and its own.
    shared_s = clock.seconds() / len(benches)
    return [
        _seen(bench, segment, detections, Clock(shared_s))
        for bench, segment, detections in zip(benches, segments, found, strict=True)
    ]


@confined
def postprocess(bench: Workbench, segments: list[dict[str, Any]]) -> dict[str, Any]:
    """Follow objects across the segments of each source, picture them, and count."""
    clock = Clock()
    job, decoded = asked(bench), bench.output("preprocess")
    found = sources(bench)
    several = len(found) > 1
    parts = {source: list(each) for source, each in itertools.groupby(segments, key=lambda one: one["source"])}
    results: list[dict[str, Any]] = []
    seen: list[Seen] = []
    crops: dict[str, bytes] = {}
    stills: dict[str, bytes] = {}
    with ExitStack() as closing:
        lines = {
            task: closing.enter_context((bench.scratch / f"{task}.jsonl").open("w"))
            for task in sorted(LOOKS & job.tasks)
        }
        for source in found:
            with named(source, len(found)):
                prefix = f"{source.number + 1:03}-" if several else ""
                told, before = decoded["sources"][source.number], sum(one.frame_count for one in seen)
                progress = partial(_tell, bench, before, decoded["frames"])
                followed, made = finish(bench, job, source, told, parts.get(source.number, []), lines, prefix, progress)
                for name in sorted(made.files):
                    bench.keep(name, made.files[name])
                if made.annotated:
                    stills[f"annotated/{prefix}{_plain(source.name)}.jpg"] = made.annotated
                crops |= made.crops
                seen.append(followed)
                results.append(result_of(job, followed, told) | made.result)
    for task in lines:
        bench.keep(f"{task}.jsonl", bench.scratch / f"{task}.jsonl")
    _keep_annotations(bench, job, seen)
    if stills and several:
        _keep_zip(bench, "annotated.zip", "annotated", stills)
    elif stills:
        bench.keep("annotated.jpg", next(iter(stills.values())))
    if "crops" in job.outputs and job.tasks & {"detect", "track"}:
        _keep_zip(bench, "crops.zip", "crops", crops)
    whole = results[0] if not several else _sum(results)
    if several or found[0].name != bench.names[0]:
        whole["sources"] = [{"name": source.name, **result} for source, result in zip(found, results, strict=True)]
    return {
        **whole,
        "device": ", ".join(sorted({segment["device"] for segment in segments})),
        "seconds": {
            "preprocess": decoded["seconds"],
            "inference": round(sum(segment["seconds"] for segment in segments), 3),
            "postprocess": clock.seconds(),
        },
    }


def probe(model: Callable[[str], Any], count: int) -> None:
    """One call of the detector on so many frames."""
    list(answers(model(MODEL), np.zeros((count, SIDE, SIDE, 3), np.uint8), count))


def weigh(segment: Mapping[str, Any]) -> int:
    """How many frames a segment has for the detector: a held one is looked at once."""
    return len(set(segment["shown"]))


PROBE = {"inference": probe}
WEIGHT = {"inference": weigh}


def asked(bench: Workbench) -> Job:
    """What the params ask for. Raises BadInput."""
    return Job(frozenset(bench.params["tasks"]), frozenset(bench.params["outputs"]), sampling(bench.params))


@contextmanager
def named(source: Source, count: int) -> Iterator[None]:
    """What is wrong with one source of several says with which."""
    try:
        yield
    except BadInput as error:
        if count == 1:
            raise
        raise BadInput(f"{source.name[:100]}: {error}") from error


def _frames(bench: Workbench, segment: Mapping[str, Any]) -> np.ndarray:
    file = bench.open(segment["files"]["frames"])
    return np.memmap(file, np.uint8, "r").reshape(-1, SIDE, SIDE, 3)


def _looked_for(bench: Workbench, segment: Mapping[str, Any]) -> set[str]:
    """The classes asked for, and persons where somebody will look closer at them; none means all."""
    wanted = set(bench.params["classes"])
    return wanted | {PERSON} if wanted and "pictures" in segment else wanted


def _detections(bench: Workbench, segment: Mapping[str, Any], answer: Answer) -> list[Detection]:
    labels, looked_for = bench.model(MODEL).labels, _looked_for(bench, segment)
    classes = frozenset(n for n, label in enumerate(labels) if label in looked_for)
    return suppressed(answer, tuple(segment["size"]), bench.params["min_score"], classes)


def _seen(bench: Workbench, segment: Mapping[str, Any], found: list[list[Detection]], clock: Clock) -> dict[str, Any]:
    """What one segment is told to show, after a closer look at its persons."""
    labels, wanted = bench.model(MODEL).labels, set(bench.params["classes"])
    closer = bodies(bench, segment, found, labels.index(PERSON)) if "pictures" in segment else {}
    if _looked_for(bench, segment) != wanted:
        found = [[one for one in detections if labels[one[0]] in wanted] for detections in found]
    seen = {detection[0] for detections in found for detection in detections}
    return {
        "source": segment["source"],
        "first": segment["first"],
        "frames": [found[n] for n in segment["shown"]],
        "labels": {str(n): labels[n] for n in sorted(seen)},
        "device": bench.device.name,
        "seconds": clock.seconds(),
        **closer,
    }


def _tell(bench: Workbench, before: int, of: int, done: int) -> None:
    """Progress over all sources."""
    bench.progress(before + done, of)


def _sum(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all sources together."""
    whole: dict[str, Any] = {"frames": sum(one["frames"] for one in results)}
    whole["duration"] = round(sum(one["duration"] for one in results), 3)
    for name in ("counts", "tracks"):
        if name in results[0]:
            whole[name] = count_of(label for one in results for label, n in one[name].items() for _ in range(n))
    return whole


def _keep_annotations(bench: Workbench, job: Job, seen: Sequence[Seen]) -> None:
    if not job.tasks & {"detect", "track"}:
        return
    several = len(seen) > 1
    if "detections" in job.outputs:
        bench.keep("detections.jsonl", as_lines(seen, several))
    if "csv" in job.outputs:
        bench.keep("detections.csv", as_csv(seen))
    if "coco" in job.outputs:
        bench.keep_json("coco.json", as_coco(seen))
    if "mot" in job.outputs:
        for n, one in enumerate(seen):
            if one.is_still:
                continue
            bench.keep(f"{n + 1:03}-mot.txt" if several else "mot.txt", as_mot(one))


def _keep_zip(bench: Workbench, name: str, folder: str, jpegs: Mapping[str, bytes]) -> None:
    file: Path = bench.scratch / name
    write_zip(file, folder, jpegs)
    bench.keep(name, file)


def _plain(name: str) -> str:
    """A member's name without its folders, for the inside of a zip."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(name).name)[:100]
