"""The parent's heart and what is forked beside it."""

import os
import threading
import time

from celery_worker import devices
from celery_worker.heartbeat import Heart
from celery_worker.metrics import WorkerCounts
from jobs.settings import Settings


def test_no_child_is_forked_in_the_middle_of_a_beat(redis_url, tmp_path, monkeypatch):
    # Given a beat that holds a lock for most of its time, as an import does
    held = threading.Lock()

    def beat(heart):
        with held:
            time.sleep(0.3)

    monkeypatch.setattr(Heart, "_tick", beat)
    settings = Settings(store_url=redis_url, broker_url=f"{redis_url}/1", files_url=tmp_path.as_uri(), queues=("io",))
    device = devices.cpu()
    heart = Heart(settings, tmp_path, device, WorkerCounts(settings.queues, device, lambda: ()))
    heart.start()
    # When children are forked
    codes = []
    for _ in range(8):
        time.sleep(0.05)
        pid = os.fork()
        if not pid:
            os._exit(0 if held.acquire(timeout=1.0) else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    heart.close()
    # Then none finds a lock that nobody will release
    assert codes == [0] * 8
