"""What `kvbench calibrate` prints. The figures are made up."""

import io
import re

import msgspec
import pytest
from rich.console import Console

from kvbench.compare.noise import Floor, Foresight, Noise
from kvbench.compare.selfcheck import SelfCheck
from kvbench_reports import noise as renderer
from tests.reports.conftest import LLAMA, SERVER
from tests.reports.test_golden import compare

CHECK = SelfCheck(pairs=56, quiet_alarms=5, floor_alarms=1)


def floor(group: str, variance: float, process_sd: float) -> Floor:
    return Floor(
        group=group,
        definition_hash="h",
        variance=variance,
        process_sd=process_sd,
        sessions=list(range(8)),
        values=[[0.0] * 5] * 8,
    )


def foresight(group: str, processes: int, metrics: int, *shares: float | None) -> Foresight:
    alone, apart, tier, tier_apart = shares
    assert alone is not None
    assert apart is not None
    return Foresight(
        group=group,
        processes=processes,
        metrics=metrics,
        interleaved=alone,
        two_sessions=apart,
        tier_interleaved=tier,
        tier_two_sessions=tier_apart,
    )


NOISE = Noise(
    kvbench_version="0.1.0",
    measured_at="2026-11-25T19:55:11+00:00",
    suite="gate",
    sessions=8,
    simulated=None,
    machine=SERVER,
    model=LLAMA,
    metrics={
        "dram.copy/a": floor("dram", 0.0002, 0.01),
        "dram.copy/b": floor("dram", 0.0008, 0.02),
        "nvme.read/a": floor("nvme", 0.0, 0.0004),
        "nvme.read/a p99": floor("p99", 0.09, 0.15),
    },
)
FORESIGHT = [
    foresight("dram", 5, 2, 0.0812, 0.127, 0.0604, 0.094),
    foresight("dram", 10, 2, 0.0601, 0.11, 0.0487, 0.081),
    foresight("nvme", 5, 1, 0.051, 0.0512, None, None),
    foresight("p99", 5, 1, 0.62, 1.7, None, None),
]


def shown(width: int, *, check: SelfCheck = CHECK, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    console = Console(file=file, width=width, force_terminal=False)
    renderer.show(NOISE, FORESIGHT, check, console, "n.json")
    file.flush()
    return raw.getvalue().decode(encoding)


def test_a_calibration_reads_as_it_did() -> None:
    compare("calibration_100.txt", shown(100))


@pytest.mark.parametrize("width", [80, 100])
def test_a_calibration_keeps_to_the_width_of_the_terminal(width: int) -> None:
    assert max(map(len, shown(width).splitlines())) <= width


def test_a_calibration_is_readable_where_only_ascii_is() -> None:
    text = shown(80, encoding="ascii")
    assert text.isascii()
    assert re.search(r"^nvme +5 +5\.1 % +5\.1 % +- +-$", text, re.MULTILINE)
    assert "?" not in text


def test_colour_only_repeats_what_the_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    renderer.show(NOISE, FORESIGHT, CHECK, Console(file=file, width=100, force_terminal=True), "F")
    assert "\x1b[" in file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    assert plain == renderer.render(NOISE, FORESIGHT, CHECK).replace("FILE", "F")
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    renderer.show(NOISE, FORESIGHT, CHECK, Console(file=file, width=100, force_terminal=True), "F")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", file.getvalue())


def test_few_sessions_and_simulated_devices_are_said() -> None:
    few = SelfCheck(pairs=20, quiet_alarms=0, floor_alarms=None)
    assert "too few sessions to try the floor on the rest" in shown(100, check=few)
    simulated = msgspec.structs.replace(NOISE, simulated="noisy")
    text = renderer.render(simulated, FORESIGHT, CHECK)
    assert "simulated devices (profile noisy): true of no machine" in text


def test_the_next_command_can_be_pasted() -> None:
    file = io.StringIO()
    renderer.show(NOISE, FORESIGHT, CHECK, Console(file=file, width=80), "my floor.json")
    assert file.getvalue().endswith("kvbench compare BASE NEW --noise 'my floor.json'\n")
