"""A user is created once, whatever happens on the way: against a real SMTP server, SQLite and Postgres."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from sqlalchemy import text

from celery_worker.pipelines.onboarding import users
from celery_worker.pipelines.onboarding.where import Where, where
from celery_worker.testing import run
from jobs.errors import BadInput, ParamsInvalid, TryAgain
from tests.neighbours import Postgres, free_port

FOLDER = Path(__file__).parent
ADA = {"name": "Ada Lovelace", "email": "ada@example.org"}


class Post:
    """A mail server in this process; `refusal` is what it says to every recipient."""

    def __init__(self) -> None:
        self.mails, self.refusal, self.port = [], "", free_port()
        self._server: Controller | None = None

    async def handle_RCPT(self, server, session, envelope, address, options):
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content, policy=policy.default)))
        return "250 OK"

    def open(self) -> None:
        self._server = Controller(self, hostname="127.0.0.1", port=self.port)
        self._server.start()

    def shut(self) -> None:
        if self._server:
            self._server.stop()
        self._server = None


@pytest.fixture
def post():
    server = Post()
    server.open()
    yield server
    server.shut()


@pytest.fixture
def place(post, tmp_path, monkeypatch):
    """The pipeline's settings: an empty SQLite file, that mail server, no patience."""
    monkeypatch.setenv("ONBOARDING_DATABASE_URL", f"sqlite:///{tmp_path}/users.db")
    monkeypatch.setenv("ONBOARDING_SMTP_URL", f"smtp://127.0.0.1:{post.port}")
    monkeypatch.setenv("ONBOARDING_SENDER", "welcome@mill.example")
    monkeypatch.setenv("ONBOARDING_PATIENCE_S", "0")
    where.cache_clear()
    yield where
    where.cache_clear()


@pytest.fixture(scope="module")
def postgres():
    with Postgres("fsync=off") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, place, monkeypatch):
    """The same for both kinds of database; their URL."""
    if request.param == "sqlite":
        yield where().database_url
        return
    monkeypatch.setenv("ONBOARDING_DATABASE_URL", request.getfixturevalue("postgres").url)
    where.cache_clear()
    yield where().database_url
    users.metadata.drop_all(users._engine(where().database_url))
    users._engine.cache_clear()


def rows(url: str) -> dict[str, int]:
    engine = users._engine(url)
    with engine.connect() as connection:
        return {
            table: connection.execute(text(f"select count(*) from {table}")).scalar_one()
            for table in ("users", "profiles", "settings", "mails")
        }


def test_a_user_gets_a_profile_settings_and_a_mail(database, post):
    # When somebody is welcomed
    result = run(FOLDER, ADA).result
    # Then everything is there once, and the mail has reached her
    assert rows(database) == {"users": 1, "profiles": 1, "settings": 1, "mails": 1}
    ((to, mail),) = post.mails
    assert (to, mail["To"], mail["From"]) == (
        ["ada@example.org"],
        "Ada Lovelace <ada@example.org>",
        "welcome@mill.example",
    )
    assert mail["Message-ID"] == result["mail"]["message_id"]
    assert abs(datetime.now(UTC) - mail["Date"].datetime) < timedelta(minutes=2)
    assert "Hello Ada Lovelace" in mail.get_content()
    assert len({result["user"], result["profile"], result["settings"]}) == 3


def test_a_repeated_attempt_changes_nothing_and_mails_nobody(database, post):
    # Given a job that was done, and whose every part is attempted again under its own key
    first = run(FOLDER, ADA).result
    # Then it has the same ids, and no second mail went out
    assert run(FOLDER, ADA).result == first
    assert rows(database) == {"users": 1, "profiles": 1, "settings": 1, "mails": 1}
    assert len(post.mails) == 1


def test_a_taken_address_is_said_clearly_whatever_its_case(database, post):
    # Given a user whom another job created
    users.register(database, "another-job.0.0", "Ada King", "ADA@example.org")
    # When the address comes again, then the job ends before anything else happens
    with pytest.raises(BadInput, match=r"^The e-mail address ada@example\.org is taken\.$"):
        run(FOLDER, ADA)
    assert rows(database) == {"users": 1, "profiles": 0, "settings": 0, "mails": 0}
    assert post.mails == []


def test_of_many_jobs_at_once_one_gets_the_address(database):
    # Given twenty that ask for it at the same time
    gate = threading.Barrier(20)

    def ask(number: int) -> str:
        gate.wait()
        try:
            return users.register(database, f"job-{number}.0.0", "Ada", "ada@example.org")
        except BadInput:
            return "taken"

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    # Then one has it
    assert answers.count("taken") == 19
    assert rows(database)["users"] == 1


def test_a_mail_server_that_is_down_is_tried_again_without_a_second_user(database, post):
    # Given a mail server that is down
    post.shut()
    with pytest.raises(TryAgain, match="The mail server does not answer"):
        run(FOLDER, ADA)
    assert rows(database)["users"] == 1
    # When it is up again, then the next attempt sends the mail to the same user
    post.open()
    run(FOLDER, ADA)
    assert rows(database) == {"users": 1, "profiles": 1, "settings": 1, "mails": 1}
    assert len(post.mails) == 1


def test_an_attempt_waits_a_little_for_a_server_that_comes_back(place, post, monkeypatch):
    monkeypatch.setenv("ONBOARDING_PATIENCE_S", "60")
    where.cache_clear()
    post.shut()
    threading.Timer(1.0, post.open).start()
    assert run(FOLDER, ADA).result["mail"]["to"] == "ada@example.org"


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [("450 mailbox busy", TryAgain, "cannot take the mail now"), ("550 no such user", BadInput, "refuses the address")],
)
def test_a_refusal_for_now_is_tried_again_and_one_for_good_is_not(place, post, refusal, error, words):
    post.refusal = refusal
    with pytest.raises(error, match=words):
        run(FOLDER, ADA)


def test_a_database_that_is_away_is_tried_again(place, monkeypatch):
    monkeypatch.setenv("ONBOARDING_DATABASE_URL", "sqlite:////no/such/folder/users.db")
    where.cache_clear()
    with pytest.raises(TryAgain, match="database does not answer"):
        run(FOLDER, ADA)


@pytest.mark.parametrize("name", ["Zoë Ærø", "O'Brien; drop table users", 'Eve" <eve@evil.example>, "', "名前"])
def test_a_name_is_a_name_in_the_mail_too(place, post, name):
    result = run(FOLDER, {**ADA, "name": name}).result
    ((to, mail),) = post.mails
    assert (to, mail["To"].addresses[0].display_name) == (["ada@example.org"], name)
    assert result["mail"]["to"] == "ada@example.org"
    assert mail.get_content().startswith(f"Hello {name},")
    assert mail.get_payload().isascii()  # not every server takes eight bits


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": "Ada"},
        {"name": "", "email": "ada@example.org"},
        {"name": "  ", "email": "ada@example.org"},
        {"name": "Ada\r\nBcc: all@example.org", "email": "ada@example.org"},
        {"name": "Ada\n", "email": "ada@example.org"},
        {"name": "=?utf-8?q?x?=", "email": "ada@example.org"},
        {"name": "A\u0000", "email": "ada@example.org"},
        {"name": "A\ud800", "email": "ada@example.org"},
        {"name": "A" * 101, "email": "ada@example.org"},
        *(
            {"name": "Ada", "email": each}
            for each in ("ada", "@b.c", "a@b", "a b@c.de", "a@b.c\n", "a@b..c", "a@-b.c", "<a@b.c>", "ä@b.de")
        ),
        {"name": "Ada", "email": "a@" + "b" * 250 + ".de"},
        {**ADA, "admin": True},
    ],
)
def test_what_cannot_be_a_user_is_refused_at_the_door(params):
    with pytest.raises(ParamsInvalid):
        run(FOLDER, params)


def test_users_are_kept_beside_the_files_or_where_the_operator_says(monkeypatch):
    # Given a folder of files, then it is beside that
    monkeypatch.delenv("ONBOARDING_DATABASE_URL", raising=False)
    monkeypatch.setenv("FILES_URL", "file:///srv/my%20mill/files")
    assert Where().database_url == "sqlite:////srv/my mill/onboarding.db"
    # Given none, then nothing is put anywhere by chance
    monkeypatch.setenv("FILES_URL", "s3://bucket/prefix")
    with pytest.raises(RuntimeError, match="ONBOARDING_DATABASE_URL must say"):
        Where()


@pytest.mark.parametrize("url", ["http://mail", "smtp:", "mail.example.org", "smtp://"])
def test_a_mail_server_that_cannot_be_one_is_refused(url):
    with pytest.raises(ValueError, match="smtp"):
        Where(database_url="sqlite://", smtp_url=url)
