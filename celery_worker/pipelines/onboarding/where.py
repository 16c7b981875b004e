"""Where users are kept and mails go: the pipeline's own settings, from the worker's environment."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _smtp(url: str) -> str:
    split = urlsplit(url)
    if split.scheme not in ("smtp", "smtps", "smtp+starttls") or not split.hostname:
        raise ValueError("must be smtp://host:port, smtp+starttls:// or smtps://, with user:password@ where needed")
    return url


def _beside_files() -> str:
    """One machine needs no setting: its users are kept beside its folder of files. Never where a worker stands."""
    split = urlsplit(os.environ.get("FILES_URL", ""))
    if split.scheme != "file" or not split.path.strip("/"):
        raise RuntimeError("ONBOARDING_DATABASE_URL must say where users are kept: FILES_URL names no folder.")
    return f"sqlite:///{Path(unquote(split.path)).parent}/onboarding.db"


class Where(BaseSettings):
    """Names are the environment's, in capitals and behind `ONBOARDING_`."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="onboarding_", extra="ignore")

    database_url: str = Field(
        default_factory=_beside_files, description="sqlite:///file or postgresql://user:password@host/database."
    )
    smtp_url: Annotated[str, AfterValidator(_smtp)] = Field("smtp://127.0.0.1:25", description="The mail server.")
    sender: str = Field("welcome@localhost", description="Who the mail comes from.")
    patience_s: float = Field(20.0, ge=0, description="Seconds that an attempt waits for a mail server that is down.")


@cache
def where() -> Where:
    """Read once per process, when the first part asks."""
    return Where()  # type: ignore[call-arg]
