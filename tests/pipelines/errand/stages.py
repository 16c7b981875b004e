"""What two stages see of the job's input, and of a page that the first one fetches beside it."""

import hashlib


def first(bench, given):
    """The input, and `beside.txt` next to it."""
    page = bench.fetch(bench.input["url"].rpartition("/")[0] + "/beside.txt", most_bytes=1_000)
    return {"first": _digest(bench), "name": bench.names[0], "beside": page.path.read_text(), "type": page.type}


def second(bench, given):
    """The input again."""
    return {**given, "second": _digest(bench)}


def _digest(bench):
    return hashlib.sha256(bench.inputs[0].read_bytes()).hexdigest()
