"""Namespaces that a peer lets others read, and how they are named and proven on the wire.

The digest of a namespace is a secret if it has a tenant's salt: it is never sent. No I/O.

May import: kvbench.errors, kvbench.peer.{model, messages}. blake3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from kvbench.errors import UsageError
from kvbench.peer.messages import PROOF_BYTES
from kvbench.peer.model import TAG_BYTES, PeerId, Tag

DIGEST_BYTES = 32


def tag_of(namespace: bytes) -> Tag:
    """What a namespace of this 32-byte digest is called on the wire."""
    return blake3(b"kvbench.peer.tag", key=namespace).digest(TAG_BYTES)


def proof_of(namespace: bytes, holder_nonce: bytes, asker_nonce: bytes) -> bytes:
    """Shows that the asker knows the digest: on this connection only, since both drew a nonce."""
    said = b"kvbench.peer.proof" + holder_nonce + asker_nonce + tag_of(namespace)
    return blake3(said, key=namespace).digest(PROOF_BYTES)


def holder_proof_of(
    namespace: bytes, holder_nonce: bytes, asker_nonce: bytes, holder_id: PeerId
) -> bytes:
    """Shows that the holder knows it, too; with its id, so that no other peer can pass it on."""
    said = b"kvbench.peer.holder" + holder_nonce + asker_nonce + tag_of(namespace) + holder_id
    return blake3(said, key=namespace).digest(PROOF_BYTES)


def check_apart(shares: Sequence["Share"], called: str) -> None:
    """Several shares have to name tenants, no two of them the same one; `called` is for the error.

    A block in a store has no namespace, it has a tenant: that is what ties it to a share.

    Raises:
        UsageError: they do not.
    """
    if len(shares) == 1:
        return
    seen: dict[str, int] = {}
    for at, share in enumerate(shares):
        if share.tenants is None:
            raise UsageError(
                f"{called}[{at}] is for all tenants and is not the only one: name its tenants, "
                "since they tell which blocks are whose"
            )
        for tenant in sorted(share.tenants):
            if tenant in seen:
                raise UsageError(
                    f"{called}[{seen[tenant]}] and {called}[{at}] both have tenant {tenant!r}: "
                    "a tenant is of one namespace"
                )
            seen[tenant] = at


@dataclass(frozen=True, slots=True)
class Share:
    """A namespace that others may read: the blocks of its tenants, since blocks name no namespace.

    Raises:
        UsageError: the digest is none.
    """

    digest: bytes = field(repr=False)  # `Namespace.digest`
    tenants: frozenset[str] | None = (
        None  # whose blocks; None: those of all, if it is the only share
    )

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST_BYTES:
            raise UsageError(
                f"a share of a digest of {len(self.digest)} bytes: give Namespace.digest"
            )

    @property
    def tag(self) -> Tag:
        """Its name on the wire."""
        return tag_of(self.digest)
