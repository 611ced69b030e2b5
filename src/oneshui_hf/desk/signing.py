"""Signed JSON objects: canonical bytes, an Ed25519 signature over them, and the key of a desk.

The key is derived from the desk's secret in the vault: its seed of 32 bytes is the HMAC-SHA256 of a fixed text under that secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError
from ..vault import Secrets, draw_secrets, new_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PURPOSE = b"oneshui: key that signs the ledger and the receipts of a desk"
SIGNATURE = "signature"


def canonical_json(value: Any) -> bytes:
    """Return the only bytes that a value is written with: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def has_valid_signature(value: Mapping[str, Any], public_key: str) -> bool:
    """Whether the field `signature` of an object is the Ed25519 signature of its other fields.

    Args:
        value: The object.
        public_key: The raw public key of 32 bytes, in hexadecimal digits.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(value[SIGNATURE]), _message(value))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return False
    return True


def _message(value: Mapping[str, Any]) -> bytes:
    return canonical_json({name: item for name, item in value.items() if name != SIGNATURE})


class SigningKey:
    """The key that signs the entries and receipts of one desk."""

    def __init__(self, vault: Path, desk: str) -> None:
        """Name the key; it is read when it is used.

        Args:
            vault: Folder of the secrets.
            desk: The desk's id.
        """
        self._secrets = Secrets(vault, desk)

    @classmethod
    def create(cls, vault: Path, owner: Path) -> SigningKey:
        """Draw the key of a new desk.

        Args:
            vault: Folder of the secrets.
            owner: The desk's folder.
        """
        key = cls(vault, new_id())
        key._secrets.create(draw_secrets(()), owner)
        return key

    @property
    def desk(self) -> str:
        """The desk's id."""
        return self._secrets.artefact

    @cached_property
    def public(self) -> str:
        """The raw public key, in hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return an object with the field `signature`.

        Raises:
            OneshuiError: The key is not in the vault.
        """
        return {**value, SIGNATURE: self._private.sign(_message(value)).hex()}

    @cached_property
    def _private(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if not self._secrets.exist:
            raise OneshuiError(
                f"The key of this request desk is not in the vault ({self._secrets.root}); set ONESHUI_VAULT to the folder that has it."
            )
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self._secrets.seal(PURPOSE)))
