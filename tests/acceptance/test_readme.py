"""The README's own pipeline, written down as it stands there, and run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gristmill import Client
from tests.acceptance.installations import ROOT, OneMachine


def test_the_pipeline_of_the_readme_runs_as_it_stands(monkeypatch, tmp_path):
    # Given its files, copied from the README
    readme = (ROOT / "README.md").read_text()
    for name, text in re.findall(r"```\w+\n# (mine/shout/[\w.]+)\n(.*?)```", readme, re.S):
        _write(tmp_path / name, text)
    (example, file) = re.search(r"^echo '(.*)' > (mine/shout/example.json)$", readme, re.M).groups()
    _write(tmp_path / file, example)
    # When one machine runs with its folder beside the others
    monkeypatch.setenv("PIPELINE_DIRS", f"{ROOT / 'celery_worker' / 'pipelines'},{tmp_path / 'mine'}")
    with OneMachine() as machine, Client(machine.url) as client:
        body = json.loads(example)
        job = client.submit(body["pipeline"], params=body["params"], **body["input"]).wait(timeout=60)
        # Then it does what the README says
        assert job.result == {"text": "HELLO!!!"}
        (kept,) = job.download(tmp_path / "out")
        assert (kept.name, kept.read_text()) == ("shout.txt", "HELLO!!!")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
