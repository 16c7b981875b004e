"""The exit codes of the `gristmill` command: a promise to scripts, listed in the README."""

from __future__ import annotations

from collections.abc import Mapping

from gristmill import errors
from gristmill.records import Status

OK, JOB_FAILED, USAGE, UNREACHABLE, NOT_FOUND, DISMISSED, REFUSED, TIMED_OUT, PORT_IN_USE = range(9)
INTERRUPTED = 130

MEANINGS: Mapping[int, str] = {
    OK: "done; for a job: successful",
    JOB_FAILED: "the job failed; `up` could not start",
    USAGE: "wrong arguments, or the gateway does not take what was sent",
    UNREACHABLE: "the gateway does not answer, or cannot serve now",
    NOT_FOUND: "no such job, pipeline or artifact",
    DISMISSED: "the job was dismissed",
    REFUSED: "not in this state: the job is not finished, or not failed; `up` runs already",
    TIMED_OUT: "`--timeout` is over; the job goes on",
    PORT_IN_USE: "`up`: the port is in use",
    INTERRUPTED: "Ctrl-C; the job goes on",
}

_BY_ERROR: tuple[tuple[type[errors.GristmillError], int], ...] = (
    (errors.JobFailed, JOB_FAILED),
    (errors.JobDismissed, DISMISSED),
    (errors.WaitTimedOut, TIMED_OUT),
    (errors.ResultNotReady, REFUSED),
    (errors.NotFound, NOT_FOUND),
    (errors.Conflict, REFUSED),
    (errors.Invalid, USAGE),
    (errors.Unavailable, UNREACHABLE),
    (errors.GatewayUnreachable, UNREACHABLE),
    (errors.DownloadBroken, UNREACHABLE),
)


def of_error(error: errors.GristmillError) -> int:
    """The code of what went wrong; a gateway that breaks (500) cannot serve."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), UNREACHABLE)


def of_status(status: Status) -> int:
    """The code of a final job."""
    return {Status.FAILED: JOB_FAILED, Status.DISMISSED: DISMISSED}.get(status, OK)
