"""What can go wrong for a client, as classes: from the gateway's problem+json, or from what happened on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class GristmillError(Exception):
    """Something went wrong."""

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or (self.__doc__ or "").strip().splitlines()[0])


class GatewayUnreachable(GristmillError):
    """The gateway does not answer."""


class WaitTimedOut(GristmillError):
    """The job is not finished yet; it goes on."""


class DownloadBroken(GristmillError):
    """What arrived is not what the gateway had listed."""


class NameRefused(GristmillError):
    """An artifact's name would leave the folder."""


class JobFailed(GristmillError):
    """The job failed. `code` is one of the documented codes, such as bad-input or stage-broke."""

    def __init__(self, detail: str, *, job_id: str, code: str, stage: str | None = None) -> None:
        super().__init__(detail)
        self.job_id = job_id
        self.code = code
        self.stage = stage


class JobDismissed(GristmillError):
    """The job was dismissed."""

    def __init__(self, *, job_id: str) -> None:
        super().__init__(f"Job {job_id} was dismissed.")
        self.job_id = job_id


class Problem(GristmillError):
    """The gateway refused. `kind` is the last word of the problem's type, `errors` all violations at once."""

    def __init__(self, status: int, kind: str, detail: str, members: Mapping[str, Any]) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.members = members
        self.errors: Sequence[Mapping[str, str]] = members.get("errors") or ()


class NotFound(Problem):
    """404: nothing has that id or name."""


class JobNotFound(NotFound):
    """No job has that id."""


class PipelineNotFound(NotFound):
    """No pipeline has that name."""


class ArtifactNotFound(NotFound):
    """The job has no artifact of that name."""


class ResultNotReady(NotFound):
    """The job has no result yet."""


class Invalid(Problem):
    """400, 413, 415 or 422: the gateway does not take what was sent."""


class PipelineUnknown(Invalid):
    """There is no pipeline of that name."""


class UploadNotFound(Invalid):
    """No uploaded file has that id."""


class ParamsInvalid(Invalid):
    """The params do not fit the pipeline's schema."""


class InputInvalid(Invalid):
    """The input is not what the pipeline takes."""


class KeyReused(Invalid):
    """That idempotency key was used for another submission."""


class Conflict(Problem):
    """409: not in the state that the job is in."""


class JobNotFailed(Conflict):
    """Only a failed job can be retried."""


class Unavailable(Problem):
    """429, 503 or 507, for longer than was waited for: the gateway cannot serve now."""


_BY_STATUS: Mapping[int, type[Problem]] = {
    400: Invalid,
    404: NotFound,
    409: Conflict,
    411: Invalid,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: Unavailable,
    503: Unavailable,
    507: Unavailable,
}


def from_answer(status: int, body: Any) -> Problem:
    """The error for an answer of 400 or above; `body` is its JSON, or anything else when it had none."""
    members: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    kind = str(members.get("type") or "").rstrip("/").rpartition("/")[2]
    detail = str(members.get("detail") or members.get("title") or f"The gateway answered {status}.")
    return _class_of(kind, status)(status, kind, detail, members)


def _class_of(kind: str, status: int) -> type[Problem]:
    """By the problem's type where a class has that name, else by status."""
    name = "".join(word.capitalize() for word in kind.split("-"))
    named = globals().get(name)
    if isinstance(named, type) and issubclass(named, Problem):
        return named
    return _BY_STATUS.get(status, Problem)
