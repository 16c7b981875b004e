"""Looks after the device from a thread of its own: a driver that hangs must not keep the heart from its leases."""

from __future__ import annotations

import threading

from celery_worker import devices, nvml
from celery_worker.workbench import Device
from jobs import log

LOOK_S = 2.0
MISSED = 2  # looks in a row that did not find it: a driver may be busy for a moment

logger = log.get(__name__)


class DeviceWatch:
    """`is_gone` once the device has not been there for some seconds, or a child says so."""

    def __init__(self, device: Device) -> None:
        self.is_gone = False
        self._device = device
        if device.kind != "cpu":
            threading.Thread(target=self._run, name="device-watch", daemon=True).start()

    def _run(self) -> None:
        missed, pause = 0, threading.Event()
        while not self.is_gone:
            pause.wait(LOOK_S)
            missed = 0 if self._is_there() else missed + 1
            self.is_gone = self.is_gone or missed >= MISSED

    def _is_there(self) -> bool:
        try:
            if devices.is_there(self._device):
                return True
            why = nvml.trouble() or "it is not listed any more"
        except Exception as error:  # noqa: BLE001 - whatever it is: a watch that stops sees nothing
            why = str(error)
        logger.warning("device_missed", device=self._device.name, why=why)
        return False
