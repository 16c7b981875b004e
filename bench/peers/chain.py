"""FastAPI + a Celery chain of three empty tasks, waited for over HTTP: confirms on, results in Redis."""

from __future__ import annotations

import os

from celery import Celery, chain
from fastapi import FastAPI
from pydantic import BaseModel

celery = Celery("peer-chain", broker=os.environ["PEER_BROKER"], backend=os.environ["PEER_RESULTS"])
celery.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    task_default_queue="peer-chain",
)
app = FastAPI()


@celery.task
def one(value: dict[str, float]) -> dict[str, float]:
    """Nothing."""
    return value


@celery.task
def two(value: dict[str, float]) -> dict[str, float]:
    """Nothing."""
    return value


@celery.task
def three(value: dict[str, float]) -> dict[str, float]:
    """Nothing."""
    return value


class Submission(BaseModel):
    """What is posted."""

    params: dict[str, float] = {}


@app.post("/process")
def process(submission: Submission) -> dict[str, object]:
    """Run the chain and answer with its result."""
    result = chain(one.s(submission.params), two.s(), three.s()).apply_async()
    return {"id": result.id, "result": result.get(timeout=5)}
