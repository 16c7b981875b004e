"""What a process serves at /metrics, read as Prometheus reads it."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families


def scraped(where: int | str) -> dict[str, float]:
    """Every sample by its name with labels in order, `name{a="1",b="2"}`. `where`: a port of this machine, or a URL."""
    url = where if isinstance(where, str) else f"http://127.0.0.1:{where}/metrics"
    answer = httpx2.get(url, timeout=20)
    assert answer.status_code == 200, answer.text
    return {
        _named(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def answers(port: int) -> bool:
    """Whether a port serves metrics yet."""
    try:
        return bool(scraped(port))
    except httpx2.TransportError:
        return False


def _named(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
