"""The lines above and below the figures."""

import msgspec
import pytest

from kvbench.geometry import load_geometry
from kvbench.machine import Cpu, Cuda, Gpu, Machine, Memory, Storage
from kvbench.measure.result import Report, State
from kvbench_reports.head import SEPARATOR, head, simulated_notice


def line(report: Report, name: str) -> str:
    return SEPARATOR.join(dict(head(report))[name])


def test_the_head_names_run_model_machine_and_drive(measured: Report) -> None:
    assert [name for name, _ in head(measured)] == ["kvbench", "model", "machine", "drive"]
    run = "0.1.0 · suite quick · 2026-11-25 16:01 UTC · took 1 min 52 s"
    assert line(measured, "kvbench") == run
    assert line(measured, "model") == (
        "llama-3.1-8b in bf16 · 131,072 B/token · block of 16 tokens = 2 MiB · 8,192 tokens = 1 GiB"
    )
    assert line(measured, "machine") == (
        "Intel Xeon Platinum 8481C · 2 of 8 cores, quota of 1.5 · "
        "16 GiB memory, limited to 8 GiB · no GPU · kvm guest"
    )
    assert line(measured, "drive") == (
        "ext4 on nvme0n1p1 (Samsung SSD 990 PRO 2TB, nvme) · ~/kv · O_DIRECT"
    )


def test_what_was_not_found_out_is_called_unknown(measured: Report) -> None:
    measured.machine = Machine(storage=Storage())
    assert line(measured, "machine") == "unknown CPU · unknown cores · unknown memory · no GPU"
    assert line(measured, "drive") == (
        "unknown filesystem on no block device · directory not recorded · no O_DIRECT"
    )


def test_gpus_of_one_kind_are_counted_and_hidden_ones_are_not_shown(measured: Report) -> None:
    gpus = [
        Gpu(index=index, cuda_index=index, name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)
        for index in range(2)
    ]
    measured.machine = Machine(
        gpus=gpus,
        cuda=Cuda(driver_version="570.86.15"),
        cpu=Cpu(model="Xeon", logical_cores=1, affinity_cores=1),
        memory=Memory(total_bytes=2**40),
    )
    assert line(measured, "machine") == (
        "Xeon · 1 core · 1 TiB memory · 2 x NVIDIA H100 80GB HBM3 80 GiB, driver 570.86.15"
    )
    hidden = [msgspec.structs.replace(gpu, cuda_index=None) for gpu in gpus]
    measured.machine = Machine(gpus=hidden)
    assert line(measured, "machine").endswith("no GPU visible")


def test_a_sharded_model_says_that_its_bytes_are_of_one_rank(measured: Report) -> None:
    measured.model = load_geometry("llama-3.1-8b", tensor_parallel=2)
    assert line(measured, "model").endswith("8,192 tokens = 512 MiB · one rank of TP 2")


def test_simulated_rows_are_announced_even_where_the_profile_was_lost(simulated: Report) -> None:
    simulated.simulated = None
    assert simulated_notice(simulated) == (
        "2 rows from simulated devices (profile not recorded), true of no machine"
    )


def test_a_simulated_run_is_announced_even_where_no_row_has_a_figure(simulated: Report) -> None:
    for row in simulated.rows:
        row.state = State.FAILED
    assert simulated_notice(simulated) is not None


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_shown_as_it_is(measured: Report, text: str) -> None:
    measured.started_at = text
    assert f"suite quick · {text}" in line(measured, "kvbench")


def test_a_run_of_hours_is_not_told_in_seconds(measured: Report) -> None:
    measured.finished_at = "2026-11-25T18:03:07Z"
    assert line(measured, "kvbench").endswith("took 2 h 2 min")
