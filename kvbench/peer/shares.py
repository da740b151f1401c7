"""Namespaces that a peer lets others read, and how they are named and proven on the wire.

The digest of a namespace is a secret if it has a tenant's salt: it is never sent. No I/O.

May import: kvbench.errors, kvbench.peer.{model, messages}. blake3.
"""

from dataclasses import dataclass, field

from blake3 import blake3

from kvbench.errors import UsageError
from kvbench.peer.messages import PROOF_BYTES
from kvbench.peer.model import TAG_BYTES, Tag

DIGEST_BYTES = 32


def tag_of(namespace: bytes) -> Tag:
    """What a namespace of this 32-byte digest is called on the wire."""
    return blake3(b"kvbench.peer.tag", key=namespace).digest(TAG_BYTES)


def proof_of(namespace: bytes, holder_nonce: bytes, asker_nonce: bytes) -> bytes:
    """Shows that the asker knows the digest: on this connection only, since both drew a nonce."""
    said = b"kvbench.peer.proof" + holder_nonce + asker_nonce + tag_of(namespace)
    return blake3(said, key=namespace).digest(PROOF_BYTES)


@dataclass(frozen=True, slots=True)
class Share:
    """A namespace that others may read.

    Raises:
        UsageError: the digest is none.
    """

    digest: bytes = field(repr=False)  # `Namespace.digest`
    tenants: frozenset[str] | None = None  # whose blocks; None: those of all

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise UsageError(
                f"a share of a digest of {len(self.digest)} bytes: give Namespace.digest"
            )

    @property
    def tag(self) -> Tag:
        """Its name on the wire."""
        return tag_of(self.digest)
