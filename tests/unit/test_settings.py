"""Settings are declared once: the environment, `.env` and the docs agree with them, and a wrong one is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs import settings
from jobs.errors import SettingsInvalid
from jobs.settings import PROTECTIONS, Settings
from tests.faults.missed import MISSED

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    "BROKER_URL": "amqp://rabbitmq:5672//",
    "STORE_URL": "redis://redis:6379/0",
    "FILES_URL": "file:///var/lib/gristmill/files",
}
VARIABLES = {name.upper() for name in Settings.model_fields}


@pytest.fixture
def environment(monkeypatch):
    """Only what must be set; the test changes it through this."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def dot_env() -> dict[str, str]:
    """What processes read; below the line `compose only` stands what the stack is made of."""
    lines = (ROOT / ".env").read_text().partition("# -- compose only")[0].splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_dot_env_has_every_setting_and_no_other():
    assert set(dot_env()) == VARIABLES


def test_dot_env_is_read_without_complaint_and_refused_in_production(environment):
    # Given the values of .env
    for name, value in dot_env().items():
        environment.setenv(name, value)
    # Then they are fit for development
    assert settings.load().environment == "dev"
    # And production refuses their secrets
    environment.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsInvalid, match=r"BROKER_URL has an insecure- secret"):
        settings.load()


def test_the_page_of_settings_is_what_the_code_says():
    printed = subprocess.run(
        [sys.executable, "-m", "jobs.settings"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert printed.stdout == (ROOT / "docs" / "settings.md").read_text()


def test_a_name_without_a_value_takes_its_default(environment):
    found = settings.load()
    assert found.queues == ("preprocess", "inference", "postprocess", "io")
    assert (found.window, found.lease_s, found.beat_s, found.without) == (8, 15.0, 3.0, frozenset())


def test_lists_are_written_with_commas(environment):
    environment.setenv("QUEUES", "inference, io,")
    environment.setenv("PIPELINE_DIRS", "celery_worker/pipelines,/srv/pipelines")
    environment.setenv("WITHOUT", "rings,fence")
    found = settings.load()
    assert found.queues == ("inference", "io")
    assert found.pipeline_dirs == ("celery_worker/pipelines", "/srv/pipelines")
    assert found.without == {"rings", "fence"}


def test_settings_do_not_change(environment):
    with pytest.raises(ValidationError, match="frozen"):
        settings.load().window = 9


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_missing_setting_is_named(environment, name):
    environment.delenv(name)
    with pytest.raises(SettingsInvalid, match=f"{name}: Field required"):
        settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_PORT", "many"),
        ("API_PORT", "70000"),
        ("BROKER_URL", "http://rabbitmq"),
        ("STORE_URL", "mysql://store"),
        ("STORE_URL", ""),
        ("FILES_URL", "/var/lib/files"),
        ("QUEUE_TYPE", "stream"),
        ("LEASE_S", "0"),
        ("WINDOW", "0"),
        ("MAX_WAIT_S", "-1"),
        ("ENVIRONMENT", "staging"),
        ("LOG_LEVEL", "loud"),
        ("OTLP_URL", "collector:4318"),
        ("OTLP_URL", "grpc://collector:4317"),
        ("OTLP_URL", "http://"),
        ("OTLP_URL", "http://collector:many"),
        ("OTLP_URL", "http://collector:99999"),
        ("OTLP_URL", "http://[collector"),
        ("OTLP_URL", "https://collector/v1/traces?token=x"),
    ],
)
def test_a_malformed_setting_is_named(environment, name, value):
    environment.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=f"^{name}: "):
        settings.load()


def test_all_that_is_wrong_is_said_at_once(environment):
    environment.delenv("STORE_URL")
    environment.setenv("API_PORT", "none")
    environment.setenv("WINDOW", "none")
    with pytest.raises(SettingsInvalid) as error:
        settings.load()
    assert [line.partition(":")[0] for line in str(error.value).split("; ")] == ["API_PORT", "STORE_URL", "WINDOW"]


@pytest.mark.parametrize("name", ["BROKER_URL", "STORE_URL"])
def test_production_refuses_a_secret_that_everybody_knows(environment, name):
    environment.setenv("ENVIRONMENT", "production")
    assert settings.load().environment == "production"
    environment.setenv(name, NEEDED[name].replace("://", "://user:insecure-secret@"))
    with pytest.raises(SettingsInvalid, match=f"{name} has an insecure- secret"):
        settings.load()


@pytest.mark.parametrize("name", sorted(PROTECTIONS))
def test_production_refuses_to_do_without_a_protection(environment, name):
    environment.setenv("WITHOUT", name)
    assert settings.load().without == {name}
    environment.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsInvalid, match="WITHOUT is refused"):
        settings.load()


def test_a_protection_that_does_not_exist_cannot_be_switched_off(environment):
    environment.setenv("WITHOUT", "fence,fences")
    with pytest.raises(SettingsInvalid, match="WITHOUT names no protection: fences"):
        settings.load()


def test_an_entry_point_ends_with_one_line_that_names_the_variable(environment, capsys):
    environment.delenv("BROKER_URL")
    with pytest.raises(SystemExit) as ended:
        settings.load_or_exit()
    assert str(ended.value) == "gristmill: settings: BROKER_URL: Field required"


def test_each_protection_has_a_scene_in_which_it_is_missed():
    assert MISSED.keys() == PROTECTIONS.keys()


def test_a_protection_has_a_name_exactly_where_code_can_leave_it_out():
    # Given the names that the code asks for, in Python and at the ends of the scripts' lines
    python = [path.read_text() for folder in ("jobs", "api", "celery_worker") for path in (ROOT / folder).rglob("*.py")]
    asked = {name for text in python for name in re.findall(r'"(\w+)" (?:not )?in [\w.]*without\b', text)}
    scripts = [path.read_text() for path in (ROOT / "jobs" / "stores" / "lua").glob("*.lua")]
    left_out = {name for text in scripts for name in re.findall(r" -- protection: (\w+)$", text, re.M)}
    # Then they are the protections, and what a script leaves out Postgres does too
    assert asked == set(PROTECTIONS)
    assert left_out <= asked
