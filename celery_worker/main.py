"""The entry point for Celery: `celery -A celery_worker.main worker`, and in children that are spawned.

`python -m celery_worker` starts it with the right flags.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from celery_worker import devices
from celery_worker.app import create_app, infers
from celery_worker.models import Models
from celery_worker.parent import Parent, models_of_queues
from celery_worker.workbench import Device
from jobs import log
from jobs.errors import ModelBroken, PipelineBroken, SettingsInvalid
from jobs.settings import Settings, load_or_exit


def device_of(settings: Settings) -> Device:
    """The device of the settings for those who infer; nobody else holds on to a GPU."""
    if not infers(settings):
        return devices.cpu()
    if devices.LIST in os.environ and settings.environment == "production":
        raise SettingsInvalid(f"{devices.LIST} names GPUs that are none, which production refuses.")
    found = devices.pin(devices.find(settings.device))
    if found.kind != "cpu" and settings.gpu_memory_mb:
        found = replace(found, memory_bytes=min(found.memory_bytes, settings.gpu_memory_mb << 20))
    return found


settings = load_or_exit()
log.setup(settings.log_level)
try:
    device = device_of(settings)
    app = create_app(settings, device)
    for name in models_of_queues(settings):
        Models(settings.models_dir, device).find(name)
except (PipelineBroken, ModelBroken, SettingsInvalid) as error:
    sys.exit(f"gristmill: worker: {error}")
parent = Parent(app, settings, device)
