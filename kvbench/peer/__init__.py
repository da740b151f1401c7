"""Serving instances share KV blocks directly: see docs/peer.md."""
