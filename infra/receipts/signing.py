"""This installation's key, and whose signatures it takes: Ed25519 (RFC 8032) over the bytes of one index file."""

import hashlib
import hmac
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from infra.documents import read_json
from infra.storage import sync_directory, write_json

SIGNATURE: Final = re.compile(rb"([0-9a-f]{64}) ([0-9a-f]{128})\n")
"""A public key and a signature; one spelling only, so that no altered byte passes."""
FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


class Untrusted(ValueError):
    """A signature that is wrong, or of somebody this installation does not know."""


class Signing:
    """The key and the trusted fingerprints below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = folder / "key"
        self._trusted = folder / "trusted.json"

    def sign(self, content: bytes) -> bytes:
        """Return the signature file of some bytes, made with this installation's key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.from_private_bytes(self._secret())
        public = key.public_key().public_bytes_raw()
        return f"{public.hex()} {key.sign(content).hex()}\n".encode()

    def fingerprint(self) -> str:
        """Return this installation's fingerprint; its key is made on first use."""
        return fingerprint_of(self.sign(b""))

    def secret(self, purpose: str) -> bytes:
        """Return 32 bytes that whoever has this installation's key can compute, and nobody else; others a purpose."""
        return hmac.digest(self._secret(), f"atelier {purpose}".encode(), "sha256")

    def verify(self, content: bytes, signature: bytes, what: str) -> str:
        """Return the signer's fingerprint; whether it is trusted is another question.

        Raises:
            Untrusted: the signature is not one, or is not of these bytes; `what` names the file.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        match = SIGNATURE.fullmatch(signature)
        if match is None:
            raise Untrusted(f"{what} has no signature that can be read in {what}.sig")
        try:
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(match[1].decode()))
            public.verify(bytes.fromhex(match[2].decode()), content)
        except (InvalidSignature, ValueError):
            raise Untrusted(f"{what} was altered: it does not match {what}.sig") from None
        return fingerprint_of(signature)

    def trusts(self, fingerprint: str) -> bool:
        """Return whether a fingerprint is this installation's own or was trusted before."""
        return fingerprint in self._known() or fingerprint == self.fingerprint()

    def trust(self, fingerprint: str, actor: str) -> None:
        """Remember a fingerprint, with who trusted it and when."""
        if not FINGERPRINT.fullmatch(fingerprint):
            raise Untrusted(f"{fingerprint!r} is no fingerprint: it has 64 digits of 0-9 and a-f")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._trusted, {**self._known(), fingerprint: {"actor": actor, "at": now}})

    def _known(self) -> dict[str, dict[str, str]]:
        try:
            found: dict[str, dict[str, str]] = read_json(self._trusted)
        except FileNotFoundError:
            return {}
        return found

    def _secret(self) -> bytes:
        """Return the private key, made where there is none; refuse one that others may read."""
        try:
            return self._read()
        except FileNotFoundError:
            self._make()
            return self._read()

    def _read(self) -> bytes:
        if self._key.stat().st_mode & 0o077:
            raise Untrusted(f"{self._key} may be read by others: chmod 600 it, or remove it")
        secret = self._key.read_bytes()
        if len(secret) != 32:
            raise Untrusted(f"{self._key} is damaged: {len(secret)} bytes, not 32")
        return secret

    def _make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        making = self._folder / f".key.{secrets.token_hex(4)}.tmp"
        try:
            descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(making, self._key)
            except FileExistsError:
                return  # another process was first: its key counts
            sync_directory(self._folder)
        finally:
            making.unlink(missing_ok=True)


def fingerprint_of(signature: bytes) -> str:
    """Return the sha256 of the public key in a signature file."""
    return hashlib.sha256(bytes.fromhex(signature[:64].decode())).hexdigest()
