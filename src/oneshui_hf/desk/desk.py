"""A request desk: one folder, and what can be done to its requests without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..files import is_locked, write_bytes
from ..option_values import shown
from ..vault import vault_root
from .commitments import KEPT, KeptData, erase_unlisted
from .entries import MAX_SENTENCE, Draft
from .ledger import LEDGER, Chain, Ledger
from .letter import LETTERS, write_letter
from .receipts import RECEIPTS
from .signing import SigningKey
from .states import EXTENDED_MONTHS, MONTHS, OPEN, Request, add_months, next_id, require_known

BEFORE_BATCH = ("identified", "refused", "withdrawn")  # kinds of entries that decide whether a request is applied
MAX_PHOTO = 64 * 2**20  # bytes


class Desk:
    """A request desk.

    Attributes:
        folder: Its folder.
        ledger: Its ledger.
    """

    def __init__(self, folder: Path, vault: Path | None = None) -> None:
        """Name a desk; its folder need not exist.

        Args:
            folder: Its folder.
            vault: Folder of the secrets; the user's vault by default.
        """
        self.folder, self._vault = folder, vault or vault_root()
        self.ledger = Ledger(folder / LEDGER, self._vault)

    def requests(self) -> dict[str, Request]:
        """Return the requests by id.

        Raises:
            UsageError: There is no desk.
            OneshuiError: Its ledger is damaged.
        """
        return self.ledger.read().requests

    @property
    def batch(self) -> Path:
        """The place that a command locks while it applies requests."""
        return self.folder / "batch"

    def find(self, id: str) -> Request:
        """Return a request. `requests` lists the errors, and one for an id that is not known."""
        return require_known(self.requests(), id)

    def kept(self, request: Request) -> KeptData:
        """Return what is kept of a request."""
        return KeptData(self.folder, self._vault, request.secret)

    def identity(self, request: Request) -> str | None:
        """Return the identity's name of a request; None if none is known."""
        named = request.last("identified") or request.entries[0]
        return self.kept(request).identity() if named.content["identity"] else None

    def receive(
        self, photo: bytes, identity: str | None, received: date | None, channel: str | None, now: datetime | None = None
    ) -> Request:
        """Record a request, and keep its photo and name encrypted. The first request opens the desk.

        Args:
            photo: The bytes of the photo's file.
            identity: The name under which the training data knows the person.
            received: Day of receipt; today (UTC) by default.
            channel: How it came, such as "mail".
            now: The time of the entry.

        Raises:
            UsageError: The day is in the future, the photo is too large, or the folder is used for something else.
        """
        today = _today(now)
        received = received or today
        if received > today:
            raise UsageError(f"--received {received} is in the future: today is {today} (UTC).")
        if len(photo) > MAX_PHOTO:
            raise UsageError(f"The photo has more than {MAX_PHOTO // 2**20} MB; give a smaller file.")
        channel = self._sentence(channel, "--channel", identity) if channel else None
        self._create()

        def draft(chain: Chain, key: SigningKey) -> list[Draft]:
            erase_unlisted(self.folder, self._vault, {request.secret for request in chain.requests.values()})
            kept = KeptData.create(self.folder, self._vault)
            content = {
                "secret": kept.secret,
                "photo": kept.keep_photo(photo),
                "identity": kept.keep_identity(identity) if identity else None,
                "received": received.isoformat(),
                "due": add_months(received, MONTHS).isoformat(),
                "channel": channel,
            }
            return [Draft("received", next_id(chain.requests), content)]

        return list(self.ledger.append(draft, now).requests.values())[-1]

    def record(
        self, id: str, kind: str, content: Callable[[Request], Mapping[str, Any]] | Mapping[str, Any], now: datetime | None = None
    ) -> Request:
        """Append an entry to a request and return it.

        Args:
            id: The request.
            kind: The kind of the entry.
            content: Its content, or a function that returns it, called while no other process appends.
            now: The time of the entry.

        Raises:
            UsageError: There is no such request, or it is in another state.
            OneshuiError: The ledger is damaged, or another command applies requests and could apply this one.
        """
        self.requests()

        def draft(chain: Chain, key: SigningKey) -> list[Draft]:
            request = require_known(chain.requests, id)
            request.require(kind)
            if kind in BEFORE_BATCH and is_locked(self.batch):
                raise OneshuiError(f"Requests are being applied, perhaps {id} as well; wait until it is done.")
            return [Draft(kind, id, content(request) if callable(content) else content)]

        return self.ledger.append(draft, now).requests[id]

    def extend(self, id: str, reason: str, now: datetime | None = None) -> Request:
        """Extend the due date of a request by two months. The person must be informed within the first month.

        Raises:
            UsageError: The request is closed, was extended before, or is overdue.
        """

        def content(request: Request) -> dict[str, str]:
            if _today(now) > request.due:
                raise UsageError(f"{id} was due on {request.due}, and only a request that is not overdue can be extended.")
            due = add_months(request.received, EXTENDED_MONTHS).isoformat()
            return {"due": due, "reason": self._reason(request, reason)}

        return self.record(id, "extended", content, now)

    def refuse(self, id: str, reason: str, now: datetime | None = None) -> Request:
        """Refuse a request. `record` lists the errors."""
        return self.record(id, "refused", lambda request: {"reason": self._reason(request, reason)}, now)

    def withdraw(self, id: str, now: datetime | None = None) -> Request:
        """Record that the person has withdrawn the request. `record` lists the errors."""
        return self.record(id, "withdrawn", {}, now)

    def letter(self, id: str, now: datetime | None = None) -> str:
        """Return the letter that would answer a request. `record` lists the errors."""
        request = self.find(id)
        request.require("answered")
        return write_letter(request, _today(now))

    def answer(self, id: str, now: datetime | None = None) -> tuple[Request, Path]:
        """Write the letter to the person, record it, and return the request and the letter's file. `record` lists the errors."""
        file = self.folder / LETTERS / f"{id}.md"

        def content(request: Request) -> dict[str, str]:
            text = write_letter(request, _today(now)).encode()
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_bytes(file, text, private=True)
            return {"letter": hashlib.sha256(text).hexdigest()}

        return self.record(id, "answered", content, now), file

    def erase(self, id: str, now: datetime | None = None) -> Request:
        """Destroy the secrets of a closed request, and what was kept of it. `record` lists the errors."""

        def content(request: Request) -> dict[str, str]:
            self.kept(request).erase()
            return {}

        return self.record(id, "erased", content, now)

    def rows(self, now: datetime | None = None) -> list[dict[str, Any]]:
        """Return a row per request: id, days, state, and the days that are left to answer; None where nothing is left to do."""
        today = _today(now)
        return [
            {
                "request": request.id,
                "received": request.received.isoformat(),
                "due": request.due.isoformat(),
                "state": request.state,
                "days_left": (left := (request.due - today).days if request.state in OPEN else None),
                "overdue": left is not None and left < 0,
                "extended": request.extended,
                "erased": request.erased,
            }
            for request in self.requests().values()
        ]

    def _create(self) -> None:
        """Create the folder, or make it private.

        Raises:
            UsageError: It contains something else than a desk.
        """
        if self.folder.exists() and not self.ledger.file.exists():
            others = [file.name for file in self.folder.iterdir() if not file.name.startswith(f".{LEDGER}.")]
            if others and set(others) - {KEPT, RECEIPTS, LETTERS}:
                raise UsageError(f"{self.folder} is no request desk, but contains '{shown(sorted(others)[0])}'; name another --desk.")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    def _reason(self, request: Request, reason: str) -> str:
        return self._sentence(reason, "--reason", self.identity(request))

    @staticmethod
    def _sentence(text: str, flag: str, identity: str | None) -> str:
        """Return a text of the operator for the ledger.

        Raises:
            UsageError: It is too long, or contains the person's name.
        """
        if len(text) > MAX_SENTENCE:
            raise UsageError(f"{flag} has {len(text)} characters, and at most {MAX_SENTENCE} are allowed.")
        if identity and not identity.isdigit() and identity.casefold() in text.casefold():
            raise UsageError(f"{flag} contains the person's name, which never enters the ledger; write it without.")
        return text


def _today(now: datetime | None) -> date:
    return (now or datetime.now(UTC)).astimezone(UTC).date()


def select(requests: Mapping[str, Request], ids: Sequence[str], state: str) -> list[Request]:
    """Return the named requests, or all in a state.

    Raises:
        UsageError: One is not known, or is in another state.
    """
    if not ids:
        return [request for request in requests.values() if request.state == state]
    return [require_known(dict(requests), id) for id in dict.fromkeys(ids)]
