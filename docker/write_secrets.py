"""Writes random passwords to secrets.env, for this user's eyes only; a file that is there is left alone."""

import os
import secrets
import sys

FILE = "secrets.env"
NAMES = (
    *("RABBITMQ_PASSWORD", "RABBITMQ_COOKIE", "REDIS_PASSWORD", "POSTGRES_PASSWORD"),
    *("FLOWER_PASSWORD", "GRAFANA_PASSWORD"),
)

try:
    handle = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
except FileExistsError:
    sys.exit(f"{FILE} is there already: servers that have run keep the passwords of their first start.")
with os.fdopen(handle, "w") as file:
    file.write(
        "# Random, made by `make secrets`. Production refuses the insecure- ones of .env.\nENVIRONMENT=production\n"
    )
    file.writelines(f"{name}={secrets.token_urlsafe(24)}\n" for name in NAMES)
print(f"{FILE} is written. `make up` uses it.")
