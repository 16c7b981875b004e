"""The welcome mail, and the way to the mail server."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

from jobs.errors import BadInput, TryAgain

ANSWERS_WITHIN_S = 15.0
PAUSES_S = (0.5, 8.0)  # between two looks at a server that is down: at first, and at most


def welcome(sender: str, name: str, email: str, message_id: str) -> EmailMessage:
    """Plain text; the name is written so that it can be nothing but a name."""
    mail = EmailMessage()
    mail["Date"] = datetime.now(UTC)
    mail["Message-ID"] = message_id
    mail["Subject"] = "Welcome"
    mail["From"] = sender
    mailbox, _, domain = email.rpartition("@")
    mail["To"] = Address(display_name=name, username=mailbox, domain=domain)
    text = f"Hello {name},\n\nyour account is ready. It is good to have you here.\n"
    mail.set_content(text, cte="quoted-printable")  # not every server takes eight bits
    return mail


def send(url: str, mail: EmailMessage, patience_s: float, tick: Callable[[], None]) -> None:
    """Hand it over. Raises BadInput when the server refuses the address for good, TryAgain when it is down or busy."""
    until, pause_s = time.monotonic() + patience_s, PAUSES_S[0]
    while True:
        tick()
        try:
            return _send(url, mail)
        except TryAgain:
            if time.monotonic() + pause_s > until:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSES_S[1])


def _send(url: str, mail: EmailMessage) -> None:
    split = urlsplit(url)
    secure = split.scheme == "smtps"
    server = smtplib.SMTP_SSL(timeout=ANSWERS_WITHIN_S) if secure else smtplib.SMTP(timeout=ANSWERS_WITHIN_S)
    try:
        with server:
            server.connect(split.hostname or "", split.port or (465 if secure else 25))
            if split.scheme == "smtp+starttls":
                server.starttls(context=ssl.create_default_context())
            if split.username:
                server.login(unquote(split.username), unquote(split.password or ""))
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        if min(codes) < 500:
            raise TryAgain(f"The mail server cannot take the mail now ({min(codes)}).") from error
        raise BadInput(f"The mail server refuses the address ({codes[0]}). The user was created.") from error
    except smtplib.SMTPResponseException as error:
        if 400 <= error.smtp_code < 500 or error.smtp_code < 0:
            raise TryAgain(f"The mail server cannot take the mail now ({error.smtp_code}).") from error
        raise  # wrong credentials or sender: no fault of the client's
    except (OSError, smtplib.SMTPServerDisconnected) as error:
        raise TryAgain("The mail server does not answer.") from error
