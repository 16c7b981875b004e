"""Writes a compose file with one inference service for each GPU, or MIG slice, of this machine: `make gpu`.

Each has its device, its queue, what it may count on of the memory, and the models that it loads first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from celery_worker import devices, nvml, stages
from celery_worker.devices import Gpu
from celery_worker.models import GUESS, SHARE, Models
from jobs.errors import ModelBroken, PipelineBroken
from jobs.pipeline import Pipelines

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 0.95  # of a device's memory is its worker's: the driver and other programs have the rest
NO_GPU = (
    "no GPU here: {why}. It needs NVIDIA's driver on this machine, and a GPU that this user may see "
    "(nvidia-smi -L lists them; one with MIG on needs slices). Nothing was written."
)
STALE = "{file} is from another time: remove it, or `make up` asks for the devices that it names."
HEAD = """# One inference service for each GPU of this machine, by `make gpu`: run it again when the devices change.
# `make up` takes it in beside docker-compose.yml while it is there. The service on the CPU is off here, but may share
# the queue: give it `replicas`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 and a file, or 1 and the reason."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--queue", default="inference", help="the queue that they serve")
    parser.add_argument("--out", type=Path, default=ROOT / "docker-compose.gpus.yml")
    asked = parser.parse_args(arguments)
    gpus = devices.list_gpus()
    if not gpus:
        print(NO_GPU.format(why=nvml.trouble() or "NVML lists none that could be used"), file=sys.stderr)
        if asked.out.exists():
            print(STALE.format(file=asked.out), file=sys.stderr)
        return 1
    try:
        models = models_of(asked.queue, ROOT / "celery_worker" / "pipelines", ROOT / "models")
    except (PipelineBroken, ModelBroken) as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 1
    services = {name_of(gpu, n): service(gpu, asked.queue, models) for n, gpu in enumerate(gpus)}
    off = {"worker-inference": {"deploy": {"replicas": 0}}}
    asked.out.write_text(HEAD + yaml.safe_dump({"services": off | services}, sort_keys=False, width=120))
    for name, found in services.items():
        told = found["environment"]
        print(f"{name}: {told['DEVICE']}, {told['GPU_MEMORY_MB']} MB, models {told['WARM_MODELS'] or 'none'}")
        for model in models.keys() - set(told["WARM_MODELS"].split(",")):
            print(f"  {model} does not fit beside these; it is loaded when a job asks for it", file=sys.stderr)
    print(f"written: {asked.out}")
    return 0


def models_of(queue: str, pipelines: Path, folder: Path) -> dict[str, int]:
    """The models that the stages of a queue name, and the bytes that each is thought to take until it is measured."""
    models = Models(folder, devices.cpu())
    named = [
        name
        for pipeline in Pipelines([pipelines]).values()
        for stage in pipeline.stages
        if stage.queue == queue
        for name in stages.models_of(pipeline).get(stage.name, ())
    ]
    return {name: GUESS * models.find(name).stat().st_size for name in named}


def name_of(gpu: Gpu, number: int) -> str:
    """The service's name: by the GPU's own number; a slice's by its place in the list too."""
    return f"worker-inference-gpu{gpu.number}" + (f"-slice{number}" if gpu.is_slice else "")


def service(gpu: Gpu, queue: str, models: Mapping[str, int]) -> dict[str, Any]:
    """The inference service of one device."""
    budget = int(gpu.memory_bytes * BUDGET)
    return {
        "extends": {"file": "docker-compose.yml", "service": "worker-inference"},
        "image": "${IMAGES?}/worker-vision-gpu:${WORKER_TAG?}",
        "build": {"args": {"ACCELERATOR": "gpu"}},
        "environment": {
            "DEVICE": gpu.uuid,
            "QUEUES": queue,
            "WORKER_NAME": f"{queue}-{gpu.uuid[: devices.UUID_CHARS]}",
            "GPU_MEMORY_MB": str(budget >> 20),
            "WARM_MODELS": ",".join(fitting(models, int(budget * SHARE))),
            "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
            "MAX_MEMORY_MB": "16384",
        },
        "deploy": {
            "replicas": 1,
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "device_ids": [gpu.uuid], "capabilities": ["gpu"]}]}
            },
        },
    }


def fitting(models: Mapping[str, int], room: int) -> list[str]:
    """Those that fit together, the first ones first."""
    found = []
    for name, needed in models.items():
        if needed <= room:
            found.append(name)
            room -= needed
    return found


if __name__ == "__main__":
    sys.exit(main())
