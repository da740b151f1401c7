"""The proofs that need processes, in their short form: the long ones are `scripts/peer_*`."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.peer.publisher import PageRequest, Publisher
from tests.peer.eventful import Eventful, keys

SCRIPTS = Path(__file__).parents[2] / "scripts"
CANNOT = 4  # the exit status of a script that says why it cannot run here


def run(script: str) -> str:
    """What `script --quick` prints; its faults fail the test."""
    pytest.importorskip("zenoh")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


def test_eight_peers_agree_after_kill_restart_freeze_partition_and_heal() -> None:
    said = run("peer_network")
    for event in ("join", "share", "kill", "restart", "freeze", "wake", "partition", "heal"):
        assert f"\n  {event}" in said


def test_hostile_connections_neither_stop_a_peer_nor_starve_who_is_honest() -> None:
    assert "of 20 kinds" in run("peer_hostile")


def test_a_frozen_or_killed_holder_costs_one_deadline_and_no_local_hit() -> None:
    said = run("peer_faults_live")
    for fault in ("SIGSTOP", "SIGKILL", "evict races"):
        assert fault in said


def test_who_joins_late_gets_a_snapshot_of_now_and_not_what_was_kept_for_others() -> None:
    store = Eventful()
    publisher = Publisher(store, store.log.epoch, lambda _: None)
    publisher.step()
    first = PageRequest(store.log.epoch, 0, 0, 0)
    assert publisher.page(first).hints == b""
    store.put(keys(range(3)))
    publisher.step()
    page = publisher.page(first)
    assert (page.sequence, len(page.hints)) == (publisher.summary().sequence, 24)
