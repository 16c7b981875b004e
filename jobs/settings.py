"""One typed, frozen Settings. The environment is read in entry points only, through `load`.

`python -m jobs.settings` prints docs/settings.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.addresses import allowed
from jobs.errors import SettingsInvalid

# What the fault battery leaves out, one at a time, to see that it is missed. A test compares the names with the code.
PROTECTIONS = {
    "confirms": "a ring counts as rung once RabbitMQ has confirmed it",
    "fence": "an attempt is ended by the claim that holds its part, and by no other",
    "final": "an attempt that ends after its job changes nothing",
    "generation": "a new claim on an emitter voids what older ones emitted",
    "token": "a repeated command gets the first answer",
    "heartbeat": "a worker's parent renews the leases of its children",
    "burial": "a worker's parent ends the lease of a child that died, with the cause",
    "watchdog": "a worker's parent ends a child that takes too much memory",
    "rings": "the sweeper rings parts again whose ring was lost",
    "deficit": "the sweeper compares rung parts with the messages that wait",
    "leases": "the sweeper ends leases that ran out",
    "grace": "no lease is ended for one lease length after a restart of the store",
    "idempotency": "a repeated Idempotency-Key answers the first job",
    "hash": "an Idempotency-Key that comes with another body is refused",
    "ack": "a signature is acknowledged after its part has ended, not before it begins",
}

SECRETS = Path("/run/secrets")


def _scheme(*allowed: str) -> AfterValidator:
    def check(url: str) -> str:
        if urlsplit(url).scheme not in allowed:
            raise ValueError(f"must start with one of {', '.join(s + '://' for s in allowed)}")
        return url

    return AfterValidator(check)


def _collector(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError("must be http:// or https:// with a host, and without a query")
    _ = parts.port  # raises ValueError for one that is none
    return url


def _names(value: object) -> object:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


BrokerUrl = Annotated[str, _scheme("amqp", "amqps", "redis", "rediss")]
StoreUrl = Annotated[str, _scheme("redis", "rediss", "postgresql", "postgresql+psycopg2")]
FilesUrl = Annotated[str, _scheme("file", "s3")]
OtlpUrl = Annotated[str, AfterValidator(_collector)]


class Settings(BaseSettings):
    """What an operator may change. Names are the environment's, in lower case; `.env` shows the same."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    environment: Literal["dev", "production"] = Field("dev", description="production refuses insecure- secrets.")
    api_port: int = Field(3333, ge=1, le=65535, description="Where the gateway listens.")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Where a worker or a sweeper serves /metrics; 0: nowhere. "
        "A worker of several queues takes the next ports too. The gateway's is at API_PORT.",
    )
    metrics_host: str = Field("127.0.0.1", description="On which address: 0.0.0.0 for all of this machine.")
    otlp_url: OtlpUrl = Field(
        "", description="Where spans go by OpenTelemetry's OTLP over HTTP, as http://collector:4318; none: nowhere."
    )
    broker_url: BrokerUrl = Field(description="Where the queues are: amqp:// or redis://.")
    store_url: StoreUrl = Field(description="Where job records are kept: redis:// or postgresql://.")
    files_url: FilesUrl = Field(description="Where bytes are kept: file:///folder or s3://bucket/prefix.")
    queues: Annotated[tuple[str, ...], NoDecode] = Field(
        ("preprocess", "inference", "postprocess", "io"), description="The queues that a worker serves, by commas."
    )
    queue_type: Literal["classic", "quorum"] = Field("classic", description="quorum for RabbitMQ clusters.")
    pipeline_dirs: Annotated[tuple[str, ...], NoDecode] = Field(
        ("celery_worker/pipelines",), description="Folders of pipelines, by commas."
    )
    models_dir: Path = Field(Path("models"), description="Where models.yaml and the models are.")
    device: str = Field("auto", description="auto, cpu, the number of a GPU, or the UUID of a GPU or a MIG slice.")
    gpu_memory_mb: int = Field(0, ge=0, description="What a worker may count on of its GPU's memory; 0: all of it.")
    warm_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models that are loaded before the first claim, beside those that the stages name; by commas."
    )
    max_batch: int = Field(
        64, ge=1, description="Most inputs of one call of a model; fewer where measuring says so. 1: one at a time."
    )
    lease_s: float = Field(15.0, gt=0, description="Seconds that a claim holds without a heartbeat (beat: a fifth).")
    window: int = Field(8, ge=1, le=1_000, description="Parts of one stage of a job that are rung or leased at a time.")
    max_failures: int = Field(3, ge=1, description="Broken attempts of a part before its job fails.")
    max_losses: int = Field(5, ge=1, description="Lost attempts of a part (its worker died) before its job fails.")
    max_waiting: int = Field(200_000, ge=1, description="Jobs that may wait to be started; more are answered 429.")
    max_body_bytes: int = Field(1_048_576, ge=1_024, description="Largest JSON body.")
    max_upload_bytes: int = Field(10_737_418_240, ge=1, description="Largest uploaded file.")
    max_fetch_s: float = Field(3_600.0, gt=0, description="Seconds that fetching the file behind a URL may take.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="What a URL may lead to beside public hosts, by commas: host, host:port, *.domain, a network such "
        "as 10.0.0.0/8, s3://bucket (read with the worker's AWS_* credentials).",
    )
    max_pixels: int = Field(67_108_864, ge=1, description="Largest picture or frame that is decoded.")
    max_wait_s: float = Field(60.0, ge=0, description="Longest Prefer: wait.")
    max_memory_mb: int = Field(4_096, ge=64, description="Resident memory at which a worker's child is ended.")
    result_ttl_s: float = Field(604_800.0, gt=0, description="Seconds that a finished job and its files are kept.")
    upload_ttl_s: float = Field(604_800.0, gt=0, description="Seconds that an upload no job uses is kept.")
    orphan_ttl_s: float = Field(3_600.0, gt=0, description="Seconds that a file which no record needs is left alone.")
    watchdog_s: float = Field(60.0, gt=0, description="Seconds after which a worker that stands still ends itself.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    flower_events: bool = Field(False, description="Task events and remote control, for Flower.")
    without: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(), description="Protections switched off for the fault battery, by commas; dev only."
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: dict[str, object]) -> dict[str, object]:
        for name in ("queues", "pipeline_dirs", "warm_models", "allowed_hosts", "without"):
            if name in values:
                values[name] = _names(values[name])
        return values

    @model_validator(mode="after")
    def _guard(self) -> Settings:
        if unknown := self.without - PROTECTIONS.keys():
            raise ValueError(f"WITHOUT names no protection: {', '.join(sorted(unknown))}")
        allowed(self.allowed_hosts)
        if self.environment == "production":
            if self.without:
                raise ValueError("WITHOUT is refused outside dev")
            for name in ("broker_url", "store_url"):
                if "insecure-" in getattr(self, name):
                    raise ValueError(f"{name.upper()} has an insecure- secret, which production refuses")
        return self

    @property
    def beat_s(self) -> float:
        """Seconds between two heartbeats: a fifth of the lease."""
        return self.lease_s / 5


def secrets_dir() -> Path | None:
    """Where a file named as a setting holds its value, unless the environment does: mounted secrets."""
    return SECRETS if SECRETS.is_dir() else None


def load() -> Settings:
    """Read the environment. Raises SettingsInvalid, naming each variable that is missing or malformed."""
    try:
        return Settings(_secrets_dir=secrets_dir())  # type: ignore[call-arg]
    except ValidationError as error:
        wrong = [f"{'_'.join(map(str, e['loc'][:1])).upper()}: {e['msg']}" for e in error.errors()]
        raise SettingsInvalid("; ".join(wrong).replace(": : ", ": ")) from None


def load_or_exit() -> Settings:
    """For entry points: the settings, or exit code 2 with a line that names what is wrong."""
    try:
        return load()
    except SettingsInvalid as error:
        sys.exit(f"gristmill: settings: {error}")


def as_markdown() -> str:
    """The page docs/settings.md, made from the fields."""
    rows = [
        f"| `{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join((*PAGE, *rows, ""))


PAGE = (
    "# Settings",
    "",
    "What an operator may change, by environment variables; `.env` holds development values of all of them.",
    "A missing or malformed value stops the process with a line that names the variable.",
    "This page is made by `python -m jobs.settings > docs/settings.md`; a test compares it with the code.",
    "",
    "| variable | default | what it does |",
    "| --- | --- | --- |",
)


def _shown(default: object) -> str:
    """A default as the environment would say it."""
    if default is PydanticUndefined:
        return "must be set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:.10g}`"
    text = ",".join(default) if isinstance(default, tuple | frozenset) else str(default)
    return f"`{text}`" if text else "none"


if __name__ == "__main__":
    print(as_markdown(), end="")
