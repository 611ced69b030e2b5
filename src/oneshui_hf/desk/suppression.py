"""Who was forgotten, so that the next training leaves them out.

The ledger contains no name, only a keyed commitment to it. With the secrets in the vault, each name of the data can be tested against the
commitments; after a request was erased, no one can.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OneshuiError
from ..vault import vault_root
from .commitments import KeptData
from .ledger import Ledger


@dataclass(frozen=True)
class Suppression:
    """The people of a data set who were forgotten, and what is known of the requests.

    Attributes:
        names: Their names. Personal data: they are in no record and no log.
        people: Their number.
        requests: Number of requests that were applied.
        absent: Number of these whose person is not in the data, or has another name there.
        unnamed: Number of these for which no name is known, so that the person cannot be found.
        erased: Number of these whose secret was erased, so that the person cannot be found any more.
        head: Hash of the ledger's last entry.
    """

    names: frozenset[str] = field(repr=False)
    people: int
    requests: int
    absent: int
    unnamed: int
    erased: int
    head: str

    @property
    def report(self) -> dict[str, Any]:
        """The entry of a run's record: numbers and a hash."""
        return {name: value for name, value in asdict(self).items() if name != "names"}

    @property
    def warning(self) -> str | None:
        """A sentence about the people who cannot be found; None if there are none."""
        if not self.erased + self.unnamed:
            return None
        return (
            "People who were forgotten cannot be found in the data, so they are used again if it contains them: "
            f"requests that were erased: {self.erased}; requests without a name: {self.unnamed}. Remove these people from the data."
        )


def find_forgotten(ledger: Path, names: Collection[str], vault: Path | None = None) -> Suppression:
    """Find the people of a data set who were forgotten: a request of theirs was applied.

    Args:
        ledger: The ledger of a request desk.
        names: The names of the identities of the data set.
        vault: Folder of the secrets; the user's vault by default.

    Raises:
        UsageError: There is no ledger.
        OneshuiError: The ledger is damaged, or a secret is not in the vault although the request was not erased.
    """
    vault = vault or vault_root()
    chain = Ledger(ledger, vault).read()
    requests = [request for request in chain.requests.values() if request.last("applied")]
    found, absent, unnamed, erased, missing = set[str](), 0, 0, 0, 0
    for request in requests:
        named = request.last("identified") or request.entries[0]
        kept, commitment = KeptData(ledger.parent, vault, request.secret), named.content["identity"]
        if commitment is None:
            unnamed += 1
        elif request.erased:
            erased += 1
        elif not kept.readable:
            missing += 1
        elif people := kept.find_identity(names, commitment):
            found.update(people)
        else:
            absent += 1
    if missing:
        raise OneshuiError(
            f"The secrets of {missing} of the requests in {ledger} are not in the vault ({vault}), so these people would be used again; "
            "set ONESHUI_VAULT to the folder that has them."
        )
    return Suppression(frozenset(found), len(found), len(requests), absent, unnamed, erased, chain.head)
