"""The `gristmill` command. Results go to standard output, what happens on the way to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from gristmill import exits
from gristmill.client import Client, Job
from gristmill.errors import GristmillError, Invalid, ResultNotReady
from gristmill.progress import follow, shown_for
from gristmill.records import Status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Submit jobs to a Gristmill gateway, watch them move, fetch what they made.",
    epilog=f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in exits.MEANINGS.items())}.",
)
Url = Annotated[str | None, typer.Option("--url", envvar="GRISTMILL_URL", help="The gateway.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that `submit` printed.")]
Timeout = Annotated[float | None, typer.Option(help="Stop waiting after so many seconds; the job goes on.")]
PATIENCE_S = 5.0
PASSED_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def main() -> None:
    """Run the command; what goes wrong is one line on standard error and an exit code."""
    try:
        app()
    except Invalid as error:
        _complain(str(error), *(f"  {each.get('pointer', '')}: {each.get('detail', '')}" for each in error.errors))
        sys.exit(exits.of_error(error))
    except GristmillError as error:
        _complain(str(error))
        sys.exit(exits.of_error(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        sys.exit(exits.OK)
    except (OSError, ValueError) as error:
        _complain(str(error))
        sys.exit(exits.USAGE)


@app.command(context_settings=PASSED_ON)
def up(context: typer.Context) -> None:
    """Run everything on this machine: gateway, workers, sweeper, an embedded Valkey (`up --help`)."""
    _become("up", context.args)


@app.command(context_settings=PASSED_ON)
def doctor(context: typer.Context) -> None:
    """Check a running installation and say what is unsafe; where its settings are (`doctor --help`)."""
    _become("doctor", context.args)


@app.command(context_settings=PASSED_ON)
def dead(context: typer.Context) -> None:
    """List parts and jobs that used up their attempts; --retry sends them back; where the settings are."""
    _become("dead", context.args)


@app.command()
def submit(
    pipeline: Annotated[str, typer.Argument(help="Its name; `gristmill pipelines` lists them.")],
    files: Annotated[list[Path] | None, typer.Argument(help="What it works on.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, as often as needed.")] = None,
    text: Annotated[str | None, typer.Option(help="Text as input.")] = None,
    input_url: Annotated[str | None, typer.Option(help="An address as input.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 is first; the gateway's default is 4.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Fail the job so many seconds after acceptance.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="name=value, as often as needed.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key and body is the same job.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch it, then print its result.")] = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job; prints its id, or with --wait its result."""
    given = files or []
    with _client(url) as client:
        job = client.submit(
            pipeline,
            file=given[0] if len(given) == 1 else None,
            files=given if len(given) > 1 else (),
            text=text,
            url=input_url,
            params={name: _value(value) for name, value in _pairs(param)},
            priority=priority,
            deadline=deadline,
            labels=dict(_pairs(label)) or None,
            key=key,
        )
        if wait:
            _finish(_watched(job, timeout, as_json), as_json)
        _print_json(job.record.raw) if as_json else print(job.id)


@app.command()
def jobs(
    status: Annotated[Status | None, typer.Option(help="Only those.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Only of that pipeline.")] = None,
    label: Annotated[str | None, typer.Option(help="Only with that label, name=value.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    wanted = ":".join(_pairs([label])[0]) if label else None
    with _client(url) as client:
        found = list(client.jobs(status=status, pipeline=pipeline, label=wanted, limit=limit))
    if as_json:
        _print_json([job.record.raw for job in found])
        return
    rows = [
        (job.id, job.pipeline, job.status, f"{job.progress:.0%}", _moment(job), job.error.code if job.error else "")
        for job in found
    ]
    _print_table(("JOB", "PIPELINE", "STATUS", "PROGRESS", "CREATED", "ERROR"), rows)


@app.command()
def watch(job_id: JobId, timeout: Timeout = None, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job's progress until it is finished; with --json, its events, one a line."""
    with _client(url) as client:
        job = client.job(job_id)
        if as_json:
            for event in job.events():
                print(json.dumps({"id": event.id, "type": event.type, "data": event.data}), flush=True)
            raise typer.Exit(exits.of_status(job.refresh().status))
        job = _watched(job, timeout, quiet=False)
        print(f"{job.id} {job.status}" + (f": {job.error.detail} ({job.error.code})" if job.error else ""))
        raise typer.Exit(exits.of_status(job.status))


@app.command()
def result(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until there is one.")] = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Print a job's result as JSON; with --json, the whole job."""
    with _client(url) as client:
        job = client.job(job_id)
        if wait:
            job = _watched(job, timeout, as_json)
        elif not job.status.is_final:
            raise ResultNotReady(404, "result-not-ready", f"The job is {job.status}; --wait waits for it.", {})
        _finish(job, as_json)


@app.command()
def download(
    job_id: JobId,
    folder: Annotated[Path, typer.Argument(help="It is made if it is not there.")] = Path("."),
    name: Annotated[list[str] | None, typer.Option(help="Only this artifact, as often as needed.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Bring a job's artifacts into a folder; interrupted, it goes on where it was. Prints their paths."""
    with _client(url) as client:
        paths = [str(path) for path in client.job(job_id).download(folder, name)]
    if as_json:
        _print_json(paths)
    else:
        print("\n".join(paths) if paths else "The job keeps no artifacts.", file=sys.stdout if paths else sys.stderr)


@app.command()
def dismiss(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """End a job; one that finished over a minute ago is removed."""
    with _client(url) as client:
        job = client.job(job_id).dismiss()
    _print_json(job.record.raw) if as_json else print(f"{job.id} {job.status}")


@app.command()
def retry(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Watch the new job, then print its result.")] = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Run a failed job again, as a new job that adopts what is done; prints the new job's id."""
    with _client(url) as client:
        job = client.job(job_id).retry()
        if wait:
            _finish(_watched(job, timeout, as_json), as_json)
        _print_json(job.record.raw) if as_json else print(job.id)


@app.command()
def pipelines(
    name: Annotated[str | None, typer.Argument(help="One of them, with its params.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List what can be run, or describe one."""
    with _client(url) as client:
        if name:
            _print_json(client.pipeline(name).raw)
            return
        found = client.pipelines()
    if as_json:
        _print_json([each.raw for each in found])
    else:
        _print_table(("PIPELINE", "TITLE"), [(each.id, each.title) for each in found])


def _watched(job: Job, timeout: float | None, quiet: bool) -> Job:
    """The job once it is final. Ctrl-C leaves it running, and says so."""
    try:
        return follow(job, shown_for(job, quiet=quiet), timeout)
    except KeyboardInterrupt:
        _complain(
            f"Job {job.id} goes on without you. See it: gristmill watch {job.id}   End it: gristmill dismiss {job.id}"
        )
        raise typer.Exit(exits.INTERRUPTED) from None


def _finish(job: Job, as_json: bool) -> NoReturn:
    """Print what a final job left, and exit with its code."""
    if as_json:
        _print_json(job.record.raw)
    elif job.status is Status.SUCCESSFUL:
        _print_json(job.result)
    else:
        _complain(f"Job {job.id} {job.status}" + (f": {job.error.detail} ({job.error.code})" if job.error else "."))
    raise typer.Exit(exits.of_status(job.status))


def _client(url: str | None) -> Client:
    return Client(url, patience=PATIENCE_S)


def _pairs(given: Sequence[str] | None) -> list[tuple[str, str]]:
    pairs = [each.partition("=") for each in given or ()]
    if wrong := [name for name, equals, _ in pairs if not (name and equals)]:
        raise ValueError(f"{wrong[0]!r} is not name=value")
    return [(name, value) for name, _, value in pairs]


def _value(text: str) -> Any:
    """A param's value: JSON where it reads as such (5, true, [1, 2]), else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _moment(job: Job) -> str:
    return job.record.created.astimezone().strftime("%Y-%m-%d %H:%M:%S") if job.record.created else ""


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on a terminal; tab-separated values otherwise, without a head, for cut and awk."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(markup=False).print(table)


def _become(name: str, arguments: Sequence[str]) -> NoReturn:
    """Go on as a command of the installation itself, of which the client imports nothing."""
    tree = Path(__file__).resolve().parent.parent
    if not (tree / "jobs" / f"{name}.py").exists():
        _complain(f"`{name}` needs the whole of Gristmill; this is the client alone. Run it from a clone (make venv).")
        raise typer.Exit(exits.USAGE)
    path = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    os.execve(sys.executable, [sys.executable, "-m", f"jobs.{name}", *arguments], {**os.environ, "PYTHONPATH": path})


def _complain(*lines: str) -> None:
    print(f"gristmill: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr, flush=True)
