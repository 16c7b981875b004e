"""A pipeline's stages run in one process as they would in a job."""

import textwrap

import pytest

from celery_worker.testing import events_of, run
from jobs.errors import BadInput, ParamsInvalid


@pytest.fixture
def letters(tmp_path):
    """A pipeline of three stages with a fan-out, in a folder of its own."""
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "pipeline.yaml").write_text(
        textwrap.dedent("""\
        title: Letters
        input: {file: [text/*]}
        stages:
          - {name: split, queue: io}
          - {name: shout, queue: io, each: true}
          - {name: join, queue: io}
        params:
          type: object
          additionalProperties: false
          properties: {mark: {type: string, default: "!"}}
        """)
    )
    (folder / "marks.py").write_text("def marked(text, mark):\n    return text + mark\n")
    (folder / "stages.py").write_text(
        textwrap.dedent("""\
        from jobs.errors import BadInput
        from . import marks

        def split(bench, given):
            text = bench.inputs[0].read_text()
            if not text:
                raise BadInput("No letters.")
            for n in reversed(range(len(text))):
                path = bench.scratch / f"{n}.txt"
                path.write_text(text[n])
                bench.emit(n, {"n": n}, files={"letter": path})
                bench.progress(len(text) - n, len(text))
            return {"count": len(text)}

        def shout(bench, given):
            bench.checkpoint()
            return bench.open(given["files"]["letter"]).read_text().upper()

        def join(bench, given):
            bench.keep("word.txt", marks.marked("".join(given), bench.params["mark"]))
            bench.keep("hidden.txt", b"", listed=False)
            return {"word": "".join(given), "count": bench.output("split")["count"]}
        """)
    )
    return folder


@pytest.fixture
def word(tmp_path):
    path = tmp_path / "word.in"
    path.write_text("mill")
    return path


def test_stages_run_in_order_and_emitted_parts_in_theirs(letters, word):
    done = run(letters, {}, [word])
    assert done.outputs == {
        "split": {"count": 4},
        "shout": ["M", "I", "L", "L"],
        "join": {"word": "MILL", "count": 4},
    }
    assert done.result == {"word": "MILL", "count": 4}
    assert {name: path.read_text() for name, path in done.artifacts.items()} == {"word.txt": "MILL!"}
    assert [data["progress"] for data in events_of(done, "progress")] == [0.25, 0.5, 0.75, 1.0]


def test_files_are_freed_once_consumed_and_scratch_is_gone(letters, word, tmp_path):
    done = run(letters, {}, [word], folder=tmp_path / "run")
    left = sorted(path.name for path in done.folder.rglob("*") if path.is_file())
    assert left == ["hidden.txt", "word.txt"]
    assert not list((done.folder / "scratch").iterdir())


def test_a_job_can_be_dismissed_at_any_checkpoint(letters, word):
    done = run(letters, {}, [word], dismiss_at=("shout", 3))
    assert (done.dismissed, list(done.outputs), done.artifacts) == (True, ["split"], {})


def test_what_a_stage_raises_is_raised(letters, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(BadInput, match="No letters"):
        run(letters, {}, [empty])


def test_params_are_checked_as_at_the_door(letters, word):
    with pytest.raises(ParamsInvalid):
        run(letters, {"mark": 5}, [word])
