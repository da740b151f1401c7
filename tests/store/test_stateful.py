"""Anything in any order: three tiers against a model, by hypothesis.

200 examples, or those of the profile if they are more: HYPOTHESIS_PROFILE=nightly runs 2,000.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.store.machine import StoreMachine, make_template

EXAMPLES = max(200, settings().max_examples)


@pytest.mark.timeout(3600)
def test_whatever_is_asked_in_whatever_order_no_block_is_wrong_and_no_slot_lost(
    tmp_path: Path,
) -> None:
    StoreMachine.template, StoreMachine.folder = tmp_path / "template", tmp_path / "drive"
    make_template(StoreMachine.template)
    StoreMachine.folder.mkdir()
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
