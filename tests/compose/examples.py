"""Every pipeline's own example, run through a stack, and compared with the answer that is stored beside it."""

from __future__ import annotations

import json

from bench.examples import PIPELINES, SERVED_AS, Example, examples_of, unequal
from gristmill import Client, Job, Status
from tests.compose.neighbours import running
from tests.compose.stack import ROOT, Stack

STREET = ROOT / "samples" / "street.mp4"
SITE = "http://site:8000/"
WITHIN_S = 240


def run_examples(stack: Stack) -> dict[str, Job]:
    """Submit all of them at once, and wait until each came out as it should: the jobs by pipeline.

    A mail server and the site of the samples are at hand, where examples that need them look for them.
    """
    network = f"{stack.project}_outside"
    examples = examples_of(PIPELINES)
    with stack.client() as client, running("mail", network), running("site", network):
        assert {listed.id for listed in client.pipelines()} == {example.name for example in examples}
        jobs = {example.name: _submit(client, example) for example in examples}
        for example in examples:
            job = jobs[example.name].wait(timeout=WITHIN_S)
            assert job.status is Status.SUCCESSFUL, f"{example.name}: {job.error}"
            # The stored answers know the site by the address that it has in an example.
            said = json.dumps(job.result).replace(SITE, SERVED_AS).replace('"site answered', '"127.0.0.1 answered')
            differing = list(unequal(example.answer["result"], json.loads(said), example.name))
            assert not differing, differing
            assert {artifact.name for artifact in job.artifacts()} >= set(example.answer.get("artifacts", ()))
    return jobs


def _submit(client: Client, example: Example) -> Job:
    """The example as it stands: files are paths in this tree, and the site has another name here."""
    given = dict(example.body.get("input", {}))
    if "file" in given:
        given["file"] = ROOT / given["file"]
    if "files" in given:
        given["files"] = [ROOT / each for each in given["files"]]
    if "url" in given:
        given["url"] = given["url"].replace(SERVED_AS, SITE)
    return client.submit(example.name, params=example.body.get("params", {}), **given)
