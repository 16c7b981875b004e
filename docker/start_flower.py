"""Starts Flower with its login and the broker's address taken from the environment, where `ps` does not show them."""

import os
import pathlib
import sys
from urllib.parse import quote, urlsplit

SECRETS = pathlib.Path("/run/secrets")


def given(name: str) -> str:
    """A variable, else a secret's file of that name in lower case."""
    file = SECRETS / name.lower()
    value = os.environ.get(name) or (file.read_text().strip() if file.is_file() else "")
    if not value:
        sys.exit(f"flower: {name} is missing")
    if os.environ.get("ENVIRONMENT") == "production" and "insecure-" in value:
        sys.exit(f"flower: {name} has an insecure- secret, which production refuses")
    return value


# A signature says which stage (its name) and which job (the first of its args): the columns that its reader came for.
COLUMNS = "--tasks_columns=name,args,state,received,runtime,worker"

broker = given("BROKER_URL")
os.environ["CELERY_BROKER_URL"] = broker
os.environ["FLOWER_BASIC_AUTH"] = f"{given('FLOWER_USER')}:{given('FLOWER_PASSWORD')}"
parts = urlsplit(broker)
if parts.scheme.startswith("amqp"):
    login = f"{quote(parts.username or '', safe='')}:{quote(parts.password or '', safe='')}"
    os.environ["FLOWER_BROKER_API"] = f"http://{login}@{parts.hostname}:15672/api/"
os.execvp("celery", ["celery", "flower", "--port=5555", "--address=0.0.0.0", "--max-tasks=10000", COLUMNS])
