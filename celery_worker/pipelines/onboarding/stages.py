"""A user, then its profile, settings and welcome mail side by side; what is done is never done twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery_worker.pipelines.onboarding import mail, users
from celery_worker.pipelines.onboarding.where import where
from celery_worker.workbench import Workbench

TASKS = ("profile", "settings", "mail")


def register(bench: Workbench, given: Mapping[str, Any]) -> dict[str, Any]:
    """Create the user, and emit what it needs; a taken address ends the job before anything else happens."""
    user_id = users.register(where().database_url, bench.key, bench.params["name"], bench.params["email"])
    for n, task in enumerate(TASKS):
        bench.emit(n, {"task": task, "user": user_id})
    return {"user": user_id}


def provide(bench: Workbench, part: Mapping[str, Any]) -> dict[str, Any]:
    """One of the three."""
    database, user_id = where().database_url, part["user"]
    if part["task"] == "profile":
        return {"profile": users.add_profile(database, bench.key, user_id, bench.params["name"])}
    if part["task"] == "settings":
        return {"settings": users.add_settings(database, bench.key, user_id)}
    return {"mail": _welcome(bench, user_id)}


def report(bench: Workbench, provided: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ids of what now exists, and the mail's message id."""
    result = {"user": bench.output("register")["user"]}
    for one in provided:
        result |= one
    return result


def _welcome(bench: Workbench, user_id: str) -> dict[str, str]:
    """A worker that dies between the server's answer and our note of it sends again, under the same Message-ID."""
    sender, email = where().sender, bench.params["email"]
    message_id = f"<{users.id_of(bench.key)}@{sender.rpartition('@')[2]}>"
    if not users.was_sent(where().database_url, message_id):
        written = mail.welcome(sender, bench.params["name"], email, message_id)
        mail.send(where().smtp_url, written, where().patience_s, bench.checkpoint)
        users.record_sent(where().database_url, message_id, user_id)
    return {"message_id": message_id, "to": email}
