"""The client: Gristmill from Python and from the command line. It knows only HTTP."""

from gristmill.client import Client, Job
from gristmill.errors import GristmillError, JobDismissed, JobFailed, WaitTimedOut
from gristmill.records import Artifact, Event, Pipeline, Record, Stage, Status

__all__ = [
    "Artifact",
    "Client",
    "Event",
    "GristmillError",
    "Job",
    "JobDismissed",
    "JobFailed",
    "Pipeline",
    "Record",
    "Stage",
    "Status",
    "WaitTimedOut",
]
