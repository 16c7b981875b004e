"""Every way it can go wrong. A class's docstring is its message; facts travel as fields."""

from __future__ import annotations

from typing import Any


class JobsError(Exception):
    """Something went wrong."""

    def __init__(self, detail: str | None = None, **fields: Any) -> None:
        super().__init__(detail or self.summary())
        self.fields = fields

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


# What a client asked for is not there, or not in this form.


class JobNotFound(JobsError):
    """No job has that id."""


class PipelineNotFound(JobsError):
    """No pipeline has that name."""


class PipelineUnknown(JobsError):
    """The body names a pipeline that does not exist."""


class UploadNotFound(JobsError):
    """No uploaded file has that id."""


class ArtifactNotFound(JobsError):
    """The job has no artifact of that name."""


class BodyInvalid(JobsError):
    """The body is readable, but not what this operation takes."""


class ParamsInvalid(JobsError):
    """The params do not fit the pipeline's schema."""


class InputInvalid(JobsError):
    """The input is not what the pipeline takes."""


class FilterInvalid(JobsError):
    """The list cannot be filtered like that."""


class CursorInvalid(JobsError):
    """The cursor is not one that this gateway gave."""


class KeyReused(JobsError):
    """That Idempotency-Key was used for another body."""


class ResultNotReady(JobsError):
    """The job has no result yet."""


class JobNotFailed(JobsError):
    """Only a failed job can be retried."""


class TooManyWaiting(JobsError):
    """Too many jobs are waiting; try again later."""


# What a neighbour could not do.


class StoreUnavailable(JobsError):
    """The store of records does not answer."""


class StoreRefused(JobsError):
    """The store is of a kind that cannot keep the promises."""


class BrokerUnavailable(JobsError):
    """The message broker does not answer."""


class FilesUnavailable(JobsError):
    """The store of files does not answer."""


class FilesFull(JobsError):
    """No space is left for files."""


class FileMissing(JobsError):
    """A file that a record names is not there."""


# What a worker is told.


class ClaimLost(JobsError):
    """The part is no longer held under that fence and token."""


class TooManyParts(JobsError):
    """A job may not have that many parts."""


# What is wrong with the installation.


class PipelineBroken(JobsError):
    """A pipeline's folder does not keep its promise."""


class ModelBroken(JobsError):
    """A model is missing, or is not the one that models.yaml names."""


class SettingsInvalid(JobsError):
    """A setting is missing or malformed."""


# What a stage may say. The only two messages that clients are shown.


class BadInput(JobsError):
    """The input cannot be used; trying again would not help."""


class TryAgain(JobsError):
    """The stage cannot run now; it should be tried later."""
