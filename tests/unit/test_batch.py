"""A batch is as large as measuring says, no larger than memory allows, and packs what is small."""

import pytest

from celery_worker.batch import Form, forms_of, measured, packs
from celery_worker.device_errors import is_out_of_memory
from jobs.errors import PipelineBroken
from jobs.pipeline import read


class Device:
    """A device with a fixed cost a call and one an input, and a clock that it alone moves on."""

    def __init__(self, call_ms, input_ms, memory=1_000, disturbed=()):
        self.call_ms, self.input_ms, self.memory, self.disturbed = call_ms, input_ms, memory, disturbed
        self.now = 0.0
        self.calls = 0

    def probe(self, model, count):
        if count > self.memory:
            raise RuntimeError("CUDA failure 2: out of memory")
        self.calls += 1
        slow = 3 if self.calls in self.disturbed else 1
        self.now += slow * (self.call_ms + self.input_ms * count) / 1e3


def form(probe, most=64, wait_ms=5.0):
    return Form("pipeline.stage", probe, lambda benches, givens: givens, None, most, wait_ms / 1e3)


def chosen(device, most=64, limit=64):
    return measured(form(device.probe, most), lambda name: None, limit, "simulated", lambda: device.now)


def test_a_batch_grows_for_as_long_as_it_pays():
    # 9, 5, 3, 2, 1.5, 1.25 ms an input: the doubling after 32 brings less than 15 %
    found = chosen(Device(8, 1))
    assert (found.size, found.takes_several) == (32, True)
    costs = {1: 9, 2: 10, 4: 12, 8: 16, 16: 24, 32: 40, 64: 72}
    assert {n: round(1e3 * seconds) for n, seconds in found.costs.items()} == costs
    # others are waited for a tenth of a lone call at most
    assert found.wait_s == pytest.approx(0.0009)


def test_a_device_that_gains_nothing_takes_one_at_a_time():
    found = chosen(Device(0.3, 4))
    assert (found.size, found.takes_several, found.wait_s) == (1, False, 0.0)


def test_a_machine_that_is_busy_for_a_moment_does_not_mislead():
    # Given a device where nothing is gained, and something that slows all first calls with one input
    device = Device(0.3, 4, disturbed=range(1, 10, 2))
    # Then the second comparison tells
    assert chosen(device).size == 1
    assert device.calls == 20


def test_a_batch_is_no_larger_than_the_pipeline_or_the_operator_says():
    assert chosen(Device(8, 0.1), most=4).size == 4
    assert chosen(Device(8, 0.1), limit=2).size == 2
    device = Device(8, 0.1)
    assert (chosen(device, limit=1).size, device.calls) == (1, 0)  # nothing to measure


def test_a_batch_is_no_larger_than_the_memory():
    assert chosen(Device(8, 0.1, memory=7)).size == 4
    assert chosen(Device(8, 0.1, memory=1)).size == 1


def test_where_nothing_can_be_measured_a_gpu_takes_the_most_and_a_cpu_one():
    assert [measured(form(None, 16), lambda name: None, 64, kind).size for kind in ("cuda", "cpu")] == [16, 1]
    assert measured(form(None, 16), lambda name: None, 4, "cuda").size == 4


def test_a_probe_that_breaks_is_told():
    with pytest.raises(ZeroDivisionError):
        measured(form(lambda model, count: 1 / 0), lambda name: None, 64, "cuda")


def test_a_batch_is_halved_down_to_one():
    found = chosen(Device(8, 0.1), most=4)
    assert [found.halve(), found.size, found.halve(), found.size, found.halve(), found.size] == [
        True,
        2,
        True,
        1,
        False,
        1,
    ]


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [
        ([1, 1, 1], 8, [[0, 1, 2]]),
        ([1] * 5, 2, [[0, 1], [2, 3], [4]]),
        ([75, 1, 1, 80, 1], 8, [[0], [1, 2], [3], [4]]),
        ([5, 4, 4], 8, [[0], [1, 2]]),
        ([], 8, []),
    ],
)
def test_parts_are_packed_in_order(weights, size, expected):
    assert packs(weights, size) == expected


def _raised_from(error, cause, while_=None):
    """As `raise error from cause` leaves it."""
    error.__cause__, error.__context__ = cause, cause or while_
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
            True,
        ),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("gdalrasterblock.cpp, 1102: cannot allocate 225000000 bytes"), True),
        (RuntimeError("(-4:Insufficient memory) Failed to allocate 900000000 bytes in function"), True),
        (_raised_from(ValueError("cut off"), RuntimeError("out of memory")), True),
        (_raised_from(ValueError("cut off"), None, while_=MemoryError()), False),
        (_raised_from(ValueError("cut off"), ValueError("shapes differ")), False),
        (ValueError("shapes differ"), False),
    ],
)
def test_the_end_of_memory_is_known_by_its_words(error, expected):
    assert is_out_of_memory(error) is expected


def pipeline(tmp_path, stage, code="def one(bench, given):\n    return 1\n"):
    folder = tmp_path / "batched"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(f"title: Batched\nstages:\n  - {stage}\n")
    (folder / "stages.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    "batch", ["{max: 0}", "{max: 1.5}", "{max: 2000}", "{max: true}", "{max: 4, wait_ms: -1}", "{}", "4"]
)
def test_a_batch_that_makes_no_sense_is_told_at_boot(tmp_path, batch):
    with pytest.raises(PipelineBroken, match=r"[Bb]atch"):
        read(pipeline(tmp_path, f"{{name: one, queue: io, batch: {batch}}}"))


def test_a_stage_that_emits_cannot_batch(tmp_path):
    stages = "{name: one, queue: io, batch: {max: 4}}\n  - {name: two, queue: io, each: true}"
    with pytest.raises(PipelineBroken, match="one: a stage that emits cannot batch"):
        read(pipeline(tmp_path, stages))


def test_a_batch_without_a_probe_is_told_at_boot(tmp_path):
    with pytest.raises(PipelineBroken, match="has no PROBE for one"):
        forms_of(read(pipeline(tmp_path, "{name: one, queue: io, batch: {max: 4}}")))
