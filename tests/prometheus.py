"""A real Prometheus for tests, and promtool beside it: the installed ones, else those of Debian's package."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2
import yaml

from tests.neighbours import Server, need

ROOT = Path(__file__).resolve().parent.parent
MONITORING = ROOT / "docker" / "monitoring"


class Prometheus(Server):
    """One that asks `targets` (job's name to ports of this machine) each second, by our rules."""

    name = "prometheus"

    def __init__(self, targets: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{self.port}"
        self._targets = targets

    def start(self) -> Self:
        """Start the installed binary, with its data in a folder of its own."""
        need(lambda: shutil.which("prometheus"), "prometheus")
        told = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "rules.yml")],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
                for job, ports in self._targets.items()
            ],
        }
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(told))
        paths = [f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data"]
        self._run(["prometheus", *paths, f"--web.listen-address=127.0.0.1:{self.port}"], cwd=self.folder)
        self._wait(self._is_ready, within_s=60)
        return self

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression answers now. AssertionError when Prometheus cannot read it."""
        answer = httpx2.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every alert, as it stands."""
        groups = httpx2.get(f"{self.url}/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/-/ready").status_code == 200
        except httpx2.TransportError:
            return False


def promtool(*arguments: str) -> str:
    """What `promtool` says. AssertionError with that when it finds fault."""
    need(lambda: shutil.which("promtool"), "prometheus")
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> dict[str, str]:
    """The expression of each alert of ours."""
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels() -> dict[str, list[str]]:
    """The queries of each panel of the dashboard."""
    dashboard = json.loads((MONITORING / "grafana" / "gristmill.json").read_text())
    shown = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in shown}
