import math
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.body import Context, StepBody, StreamBody
from kvbench.measure.clock import FakeClock
from kvbench.measure.sampler import sample
from kvbench.measure.simulated import (
    Device,
    SimulatedStep,
    SimulatedStream,
    hash_of,
    load_profile,
)
from kvbench.measure.suite import Plan, Value
from kvbench.units import GIB, MIB

DRIVE = Device(bandwidth_bytes_per_s=1e9, latency_s=1e-3)
SHIPPED = sorted(
    entry.name.removesuffix(".toml") for entry in (files("kvbench.data") / "profiles").iterdir()
)


def context(geometry: KVGeometry, process: int = 0, *, seed: int = 0, **params: Value) -> Context:
    return Context(
        params={"block_bytes": MIB, **params},
        geometry=geometry,
        machine=Machine(),
        plan=Plan(),
        seed=seed,
        process=process,
        scratch=None,
    )


# ---------------------------------------------------------------- what a device can do


@pytest.mark.parametrize(
    ("block_bytes", "queue_depth", "bytes_per_s"),
    [
        # Alone, 1 MB takes 1 ms of latency and 1 ms of transfer: 1 MB in 2 ms.
        (1_000_000, 1, 0.5e9),
        # Two in flight are twice as fast, which is the bandwidth; more cannot be faster.
        (1_000_000, 2, 1e9),
        (1_000_000, 64, 1e9),
        # 1 kB takes 1.001 ms; Little's law with 10 in flight, far from the bandwidth.
        (1_000, 1, 1_000 / 1.001e-3),
        (1_000, 10, 10_000 / 1.001e-3),
        # So large that the latency hardly counts.
        (10**12, 1, 1e12 / 1000.001),
    ],
)
def test_a_devices_rate_is_littles_law_below_its_bandwidth(
    block_bytes: int, queue_depth: int, bytes_per_s: float
) -> None:
    assert DRIVE.true_bytes_per_s(block_bytes, queue_depth) == pytest.approx(bytes_per_s)


def test_without_latency_one_operation_has_the_whole_bandwidth() -> None:
    device = Device(bandwidth_bytes_per_s=3e9, latency_s=0)
    assert device.true_bytes_per_s(1) == pytest.approx(3e9)


@pytest.mark.parametrize(
    "figures",
    [
        {"bandwidth_bytes_per_s": 0.0},
        {"bandwidth_bytes_per_s": -1.0},
        {"bandwidth_bytes_per_s": math.nan},
        {"bandwidth_bytes_per_s": math.inf},
        {"latency_s": -1e-9},
        {"latency_s": math.nan},
        {"latency_s": math.inf},
        {"process_sd": -0.1},
        {"sample_sd": -0.1},
        {"process_sd": math.nan},
        {"autocorrelation": -0.1},
        {"autocorrelation": 1.0},
    ],
    ids=str,
)
def test_a_device_that_cannot_be_is_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be (above 0|in \[0, 1\))"):
        Device(**{"bandwidth_bytes_per_s": 1e9, "latency_s": 0.0, **figures})


# ---------------------------------------------------------------- profiles


@pytest.mark.parametrize("name", SHIPPED)
def test_every_profile_that_ships_loads_and_has_every_tier(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.devices) == {"hbm", "dram", "nvme", "peer"}
    for device in profile.devices.values():
        limit = device.limit_bytes_per_s
        assert limit is None or limit >= device.bandwidth_bytes_per_s


def test_the_steady_profile_has_no_noise_and_the_noisy_one_has() -> None:
    steady, noisy = load_profile("steady").devices, load_profile("noisy").devices
    assert all(d.process_sd == d.sample_sd == d.autocorrelation == 0 for d in steady.values())
    assert all(d.process_sd > 0 and d.sample_sd > 0 for d in noisy.values())


def test_a_users_profile_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\n[devices.nvme]\nbandwidth_bytes_per_s = 7e9\nlatency_s = 1e-4\n'
    )
    profile = load_profile(str(path))
    assert profile.name == "mine"
    assert profile.devices == {"nvme": Device(bandwidth_bytes_per_s=7e9, latency_s=1e-4)}


def test_an_unknown_profile_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"no profile named 'fast'; there are: noisy, steady"):
        load_profile("fast")


def test_a_profile_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        name = str(path if path.suffix else path / "..toml")
        with pytest.raises(UsageError, match=f"cannot read profile {name}: No such file"):
            load_profile(name)


HEAD = 'name = "x"\n[devices.nvme]\n'
WRONG = {
    "broken TOML": (b"name = ", "Invalid value"),
    "not UTF-8": (b'name = "\xff"\n', "is not TOML: 'utf-8' codec"),
    "no name": (b"[devices]\n", "missing required field `name`"),
    "unknown top key": (b'name = "x"\nspeed = 1\n[devices]\n', "unknown field `speed`"),
    "unknown device key": (
        f"{HEAD}bandwidth = 1e9\nlatency_s = 0\n".encode(),
        "unknown field `bandwidth`",
    ),
    "missing figure": (f"{HEAD}latency_s = 0\n".encode(), "missing required field `bandwidth"),
    "rate with a unit": (
        f'{HEAD}bandwidth_bytes_per_s = "7GB/s"\nlatency_s = 0\n'.encode(),
        "Expected `float`, got `str`",
    ),
    "impossible figure": (
        f"{HEAD}bandwidth_bytes_per_s = 0\nlatency_s = 0\n".encode(),
        "bandwidth_bytes_per_s must be above 0",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_a_profile_names_the_file_and_the_key(tmp_path: Path, mistake: str) -> None:
    content, said = WRONG[mistake]
    path = tmp_path / "wrong.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        load_profile(str(path))
    assert str(raised.value).startswith(f"profile {path}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- simulated bodies


def test_they_are_bodies_of_the_two_kinds_on_a_clock_that_only_they_move() -> None:
    clock = FakeClock()
    step, stream = SimulatedStep(DRIVE, clock), SimulatedStream(DRIVE, clock)
    assert isinstance(step, StepBody)
    assert isinstance(stream, StreamBody)
    assert not isinstance(step, StreamBody)
    assert step.clock == stream.clock == "fake"
    assert step.observed().path == stream.observed().path == "simulated device"
    assert stream.watch() is None, "no real file is looked at"


@pytest.mark.parametrize("block_bytes", [4096, 3 * MIB, 64 * MIB, GIB])
def test_a_step_moves_whole_blocks_in_the_time_the_device_takes(
    llama: KVGeometry, block_bytes: int
) -> None:
    clock = FakeClock()
    body = SimulatedStep(DRIVE, clock)
    body.set_up(context(llama, block_bytes=block_bytes))
    payload, took_s = clock.time(body.step)
    assert payload > 0
    assert payload % block_bytes == 0
    assert payload <= max(64 * MIB, block_bytes)
    assert payload / took_s == pytest.approx(DRIVE.true_bytes_per_s(block_bytes))


@pytest.mark.parametrize("queue_depth", [1, 4, 32])
def test_a_stream_completes_at_the_devices_rate_with_littles_latency(
    llama: KVGeometry, queue_depth: int
) -> None:
    clock = FakeClock()
    body = SimulatedStream(DRIVE, clock)
    body.set_up(context(llama, queue_depth=queue_depth))
    body.start()
    parts = [body.poll(0.05) for _ in range(200)]
    ends = np.concatenate([part.end_ns for part in parts])
    rate = DRIVE.true_bytes_per_s(MIB, queue_depth)
    assert body.operation_bytes == MIB
    assert len(ends) * MIB / clock.now_s() == pytest.approx(rate, rel=0.01)
    assert (np.diff(ends) > 0).all(), "in order, none twice"
    latencies = np.concatenate([part.latency_ns for part in parts])
    assert latencies * 1e-9 == pytest.approx(np.full(len(latencies), queue_depth * MIB / rate))


def test_an_operation_slower_than_a_poll_still_ends_and_the_clock_goes_with_it(
    llama: KVGeometry,
) -> None:
    clock = FakeClock()
    body = SimulatedStream(DRIVE, clock)
    body.set_up(context(llama, block_bytes=GIB))  # more than a second each
    body.start()
    done = body.poll(0.05)
    assert len(done.end_ns) == 1
    assert clock.now_s() == pytest.approx(done.end_ns[0] * 1e-9)
    assert len(body.poll(0).end_ns) == 0


@pytest.mark.parametrize("kind", [SimulatedStep, SimulatedStream])
def test_the_sampler_finds_the_truth_of_a_device_without_noise(
    llama: KVGeometry, kind: type[SimulatedStep] | type[SimulatedStream]
) -> None:
    clock = FakeClock()
    body = kind(DRIVE, clock)
    body.set_up(context(llama, queue_depth=1))
    found = sample(body, clock, Plan(), lambda *_: None)
    assert found.bytes_per_s == pytest.approx(DRIVE.true_bytes_per_s(MIB), rel=1e-6)


# ---------------------------------------------------------------- noise

NOISY = Device(
    bandwidth_bytes_per_s=1e9,
    latency_s=0.0,
    process_sd=0.05,
    sample_sd=0.02,
    autocorrelation=0.6,
)


def log_rates(
    geometry: KVGeometry, device: Device, process: int, steps: int, **case: int
) -> NDArray[np.float64]:
    """How far each step was from the truth, as a logarithm."""
    clock = FakeClock()
    body = SimulatedStep(device, clock)
    body.set_up(context(geometry, process, **case))
    found = [clock.time(body.step) for _ in range(steps)]
    truth = device.true_bytes_per_s(MIB)
    return np.log([payload / took_s / truth for payload, took_s in found])


def test_processes_differ_by_the_sd_of_the_profile_and_centre_on_the_truth(
    llama: KVGeometry,
) -> None:
    device = Device(bandwidth_bytes_per_s=1e9, latency_s=0.0, process_sd=0.05)
    means = np.array([log_rates(llama, device, process, 2)[0] for process in range(4000)])
    assert means.std() == pytest.approx(0.05, rel=0.04)  # 3.5 sd of an sd from 4000
    assert abs(means.mean()) < 4 * 0.05 / math.sqrt(4000)


def test_samples_of_one_process_share_its_luck_and_vary_and_correlate_as_said(
    llama: KVGeometry,
) -> None:
    runs = np.array([log_rates(llama, NOISY, process, 400) for process in range(60)])
    inside = runs - runs.mean(axis=1, keepdims=True)
    assert inside.std() == pytest.approx(0.02, rel=0.05)
    lag = (inside[:, 1:] * inside[:, :-1]).mean() / (inside**2).mean()
    assert lag == pytest.approx(0.6, abs=0.03)
    # Far more than 400 correlated samples of 2 % would let the means scatter by themselves.
    assert runs.mean(axis=1).std() > 0.03


def test_the_same_process_of_the_same_run_has_the_same_luck_again(llama: KVGeometry) -> None:
    first = log_rates(llama, NOISY, 3, 20)
    assert (first == log_rates(llama, NOISY, 3, 20)).all()
    assert (first != log_rates(llama, NOISY, 4, 20)).all()
    assert (first != log_rates(llama, NOISY, 3, 20, seed=1)).all()


def test_two_cases_of_one_process_do_not_share_their_luck(llama: KVGeometry) -> None:
    one, two = (log_rates(llama, NOISY, 3, 20, queue_depth=depth) for depth in (1, 2))
    assert (one != two).all()
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}), "whatever order they come in"


def test_a_cases_luck_does_not_depend_on_the_interpreters_own_hashing() -> None:
    code = "from kvbench.measure.simulated import hash_of; print(hash_of({'order': 'random'}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert found == {f"{hash_of({'order': 'random'})}\n".encode()}
