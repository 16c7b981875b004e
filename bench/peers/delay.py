"""FastAPI + `delay()`: confirms on, results ignored. The least code that accepts a job and loses none on the way."""

from __future__ import annotations

import os

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

QUEUE = "peer-delay"

celery = Celery("peer-delay", broker=os.environ["PEER_BROKER"])
celery.conf.update(
    broker_transport_options={"confirm_publish": True}, task_default_queue=QUEUE, task_ignore_result=True
)
app = FastAPI()


@celery.task
def add(x: float, y: float) -> float:
    """The sum."""
    return x + y


class Params(BaseModel):
    """Two numbers."""

    x: float
    y: float


class Submission(BaseModel):
    """What is posted."""

    pipeline: str
    params: Params


@app.post("/process", status_code=202)
def process(submission: Submission) -> dict[str, str]:
    """Put the task on its queue; answer once the broker has confirmed it."""
    return {"id": add.delay(submission.params.x, submission.params.y).id}
