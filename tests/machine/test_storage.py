import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.machine import Storage
from kvbench.machine.directio import dio_alignment, try_direct_io
from kvbench.machine.storage import probe_storage
from kvbench.machine.tree import Tree

LayOut = Callable[[Mapping[str, str | bytes]], Path]

PCI = "sys/devices/pci0000:00"
GEN4_X4 = 16e9 * 4 * 128 / 130 / 8


def nvme(
    number: int, *, width: int = 4, speed: str = "16.0 GT/s PCIe", model: str = "Fast 3.84TB"
) -> dict[str, str]:
    """An NVMe drive with one partition, as /sys shows it."""
    pci = f"{PCI}/0000:0{number + 1}:00.0"
    name, controller = f"nvme{number}n1", f"{pci}/nvme/nvme{number}"
    block = f"{controller}/{name}"
    up = "../../devices/" + controller.removeprefix("sys/devices/")
    return {
        f"{pci}/current_link_speed": f"{speed}\n",
        f"{pci}/current_link_width": f"{width}\n",
        f"{pci}/max_link_speed": "16.0 GT/s PCIe\n",
        f"{pci}/max_link_width": "4\n",
        f"{pci}/numa_node": "1\n",
        f"{controller}/model": f"{model}                  \n",
        f"{controller}/transport": "pcie\n",
        f"{controller}/serial": "SECRET-SERIAL\n",
        f"{controller}/device": "-> ../..",
        f"{block}/device": "-> ..",
        f"{block}/queue/rotational": "0\n",
        f"{block}/queue/logical_block_size": "512\n",
        f"{block}/queue/scheduler": "[none] mq-deadline\n",
        f"{block}/stat": "1 2 3\n",
        f"{block}/slaves/": "",
        f"{block}/{name}p1/partition": "1\n",
        f"{block}/{name}p1/stat": "4 5 6\n",
        f"sys/class/block/{name}": f"-> {up}/{name}",
        f"sys/class/block/{name}p1": f"-> {up}/{name}/{name}p1",
        f"sys/dev/block/259:{number * 2}": f"-> {up}/{name}",
        f"sys/dev/block/259:{number * 2 + 1}": f"-> {up}/{name}/{name}p1",
    }


def stacked(name: str, device: str, *slaves: str) -> dict[str, str]:
    """A device-mapper or md device over others."""
    block = f"sys/devices/virtual/block/{name}"
    return {
        f"{block}/stat": "7 8 9\n",
        f"sys/class/block/{name}": f"-> ../../devices/virtual/block/{name}",
        f"sys/dev/block/{device}": f"-> ../../devices/virtual/block/{name}",
        **{f"{block}/slaves/{slave}": f"-> ../../../../../class/block/{slave}" for slave in slaves},
    }


def mounts(*lines: str) -> dict[str, str]:
    root = "22 1 0:5 / / rw,relatime - rootfs rootfs rw\n"
    return {"proc/self/mountinfo": root + "".join(f"{line}\n" for line in lines)}


def probe(root: Path, directory: str = "data/kv") -> Storage:
    path = root / directory
    path.mkdir(parents=True, exist_ok=True)
    return probe_storage(path, Tree(root))


DATA_ON_PARTITION = "30 22 259:1 / /data rw,noatime shared:1 - ext4 /dev/nvme0n1p1 rw,data=ordered"


def test_a_partition_of_an_nvme_drive_is_traced_to_drive_model_and_link(lay_out: LayOut) -> None:
    found = probe(lay_out(nvme(0) | mounts(DATA_ON_PARTITION)))

    assert (found.filesystem, found.block_device) == ("ext4", "nvme0n1p1")
    assert (found.drives, found.device_kind) == (["nvme0n1"], "nvme")
    assert (found.device_model, found.rotational, found.numa_node) == ("Fast 3.84TB", False, 1)
    assert (found.link_generation, found.link_width) == (4, 4)
    assert found.link_bytes_per_s == pytest.approx(GEN4_X4)
    assert found.link_source == "PCIe 4 x4: 16 GT/s x 4 lanes, 128b/130b"
    assert found.mount_options == ["rw", "noatime", "data=ordered"]
    assert (found.scheduler, found.logical_block_bytes) == ("none", 512)


def test_the_byte_counters_are_those_of_the_partition_not_of_the_drive(lay_out: LayOut) -> None:
    root = lay_out(nvme(0) | mounts(DATA_ON_PARTITION))
    stat_path = probe(root).stat_path

    assert stat_path == "/sys/class/block/nvme0n1p1/stat"
    assert (root / stat_path.lstrip("/")).read_text() == "4 5 6\n"


def test_no_serial_number_reaches_the_record(lay_out: LayOut) -> None:
    assert "SECRET" not in repr(probe(lay_out(nvme(0) | mounts(DATA_ON_PARTITION))))


def test_a_narrow_link_is_reported_as_negotiated_beside_its_maximum(lay_out: LayOut) -> None:
    found = probe(lay_out(nvme(0, width=2, speed="8.0 GT/s PCIe") | mounts(DATA_ON_PARTITION)))

    assert found.link_bytes_per_s == pytest.approx(8e9 * 2 * 128 / 130 / 8)
    assert (found.link_generation_max, found.link_width_max) == (4, 4)


@pytest.mark.parametrize(
    ("width", "speed"), [(0, "16.0 GT/s PCIe"), (255, "16.0 GT/s PCIe"), (4, "Unknown")]
)
def test_an_unknown_link_has_a_reason_and_no_figure(
    lay_out: LayOut, width: int, speed: str
) -> None:
    found = probe(lay_out(nvme(0, width=width, speed=speed) | mounts(DATA_ON_PARTITION)))

    assert found.link_bytes_per_s is None
    assert found.link_reason


@pytest.mark.parametrize(
    ("name", "device", "slaves"),
    [("dm-0", "253:0", ("nvme0n1p1", "nvme1n1")), ("md0", "9:0", ("nvme0n1", "nvme1n1p1"))],
)
def test_a_stripe_has_the_links_of_all_its_drives(
    lay_out: LayOut, name: str, device: str, slaves: tuple[str, str]
) -> None:
    line = f"30 22 {device} / /data rw - xfs /dev/mapper/vg-data rw"
    drives = nvme(0) | nvme(1, width=2, model="Other 1TB")
    found = probe(lay_out(drives | stacked(name, device, *slaves) | mounts(line)))

    assert (found.block_device, found.drives) == (name, ["nvme0n1", "nvme1n1"])
    assert found.link_bytes_per_s == pytest.approx(GEN4_X4 * 1.5)
    assert found.link_width == 2  # the slowest drive's
    assert found.device_kind == "nvme"
    assert found.device_model == "Fast 3.84TB + Other 1TB"
    assert found.stat_path == f"/sys/class/block/{name}/stat"


def test_two_partitions_of_one_drive_are_one_drive(lay_out: LayOut) -> None:
    line = "30 22 253:0 / /data rw - xfs /dev/mapper/vg-data rw"
    files = nvme(0) | stacked("dm-0", "253:0", "nvme0n1", "nvme0n1p1") | mounts(line)

    assert probe(lay_out(files)).drives == ["nvme0n1"]


def test_a_multipath_nvme_drive_is_traced_through_its_subsystem(lay_out: LayOut) -> None:
    head = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    files = nvme(0)
    moved = {
        name: value
        for name, value in files.items()
        if not name.startswith("sys/class/block/nvme0n1")
    }
    moved |= {
        f"{head}/nvme0n1/device": "-> ..",
        f"{head}/nvme0n1/stat": "1\n",
        f"{head}/nvme0": "-> ../../../pci0000:00/0000:01:00.0/nvme/nvme0",
        "sys/class/block/nvme0n1": "-> ../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        "sys/dev/block/259:9": "-> ../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
    }
    found = probe(lay_out(moved | mounts("30 22 259:9 / /data rw - xfs /dev/nvme0n1 rw")))

    assert (found.device_kind, found.device_model) == ("nvme", "Fast 3.84TB")
    assert found.link_bytes_per_s == pytest.approx(GEN4_X4)


def test_nvme_over_a_network_is_a_network(lay_out: LayOut) -> None:
    files = nvme(0) | mounts(DATA_ON_PARTITION)
    files[f"{PCI}/0000:01:00.0/nvme/nvme0/transport"] = "tcp\n"
    found = probe(lay_out(files))

    assert (found.device_kind, found.link_bytes_per_s) == ("network", None)
    assert "tcp" in (found.link_reason or "")


def test_btrfs_is_traced_by_its_source_because_its_device_number_is_its_own(
    lay_out: LayOut,
) -> None:
    line = "30 22 0:45 /@data /data rw - btrfs /dev/nvme0n1p1 rw,compress=zstd:3,subvol=/@anna"
    found = probe(lay_out(nvme(0) | mounts(line)))

    assert (found.block_device, found.drives) == ("nvme0n1p1", ["nvme0n1"])
    assert found.mount_options == ["rw", "compress=zstd:3"]


def test_a_virtual_disk_has_no_link_and_is_not_called_rotational(lay_out: LayOut) -> None:
    block = f"{PCI}/0000:00:02.0/virtio1/block/vda"
    up = "../../devices/pci0000:00/0000:00:02.0/virtio1/block/vda"
    found = probe(
        lay_out(
            {
                f"{block}/queue/rotational": "1\n",
                f"{block}/queue/logical_block_size": "512\n",
                f"{block}/stat": "1\n",
                "sys/class/block/vda": f"-> {up}",
                "sys/dev/block/254:0": f"-> {up}",
            }
            | mounts("27 22 254:0 / /data rw - ext4 /dev/vda rw")
        )
    )

    assert (found.device_kind, found.drives, found.rotational) == ("virtio", ["vda"], None)
    assert found.link_bytes_per_s is None
    assert "virtual disk" in (found.link_reason or "")


def test_a_sata_disk_has_the_link_of_its_port(lay_out: LayOut) -> None:
    port = f"{PCI}/0000:00:17.0/ata3"
    disk = f"{port}/host2/target2:0:0/2:0:0:0"
    up = f"../../devices/{disk.removeprefix('sys/devices/')}/block/sda"
    found = probe(
        lay_out(
            {
                f"{port}/link3/ata_link/link3/sata_spd": "6.0 Gbps\n",
                f"{disk}/model": "Spinner 8TB\n",
                f"{disk}/block/sda/device": "-> ../..",
                f"{disk}/block/sda/queue/rotational": "1\n",
                "sys/class/block/sda": f"-> {up}",
                "sys/dev/block/8:0": f"-> {up}",
            }
            | mounts("27 22 8:0 / /data rw - xfs /dev/sda rw")
        )
    )

    assert (found.device_kind, found.device_model) == ("sata", "Spinner 8TB")
    assert found.rotational is True
    assert found.link_bytes_per_s == 600e6


def test_tmpfs_is_memory_and_never_direct(lay_out: LayOut) -> None:
    found = probe(lay_out(mounts("30 22 0:27 / /data rw - tmpfs tmpfs rw,size=100k")))

    assert (found.device_kind, found.direct_io) == ("memory", False)
    assert "memory" in (found.direct_io_reason or "")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")
def test_the_tmpfs_of_this_machine_is_memory_whatever_its_kernel_accepts() -> None:
    found = probe_storage(Path("/dev/shm"), Tree())

    assert (found.filesystem, found.device_kind, found.direct_io) == ("tmpfs", "memory", False)


@pytest.mark.parametrize("filesystem", ["nfs4", "lustre", "fuse.sshfs"])
def test_a_network_file_system_is_no_drive_and_its_server_is_not_recorded(
    lay_out: LayOut, filesystem: str
) -> None:
    line = f"30 22 0:50 / /data rw - {filesystem} 10.1.2.3:/export rw,addr=10.1.2.3,rsize=1048576"
    found = probe(lay_out(mounts(line)))

    assert found.device_kind == "network"
    assert "10.1.2.3" not in repr(found)
    assert found.mount_options == ["rw", "rsize=1048576"]


def test_an_overlay_on_the_host_is_traced_to_the_drive_of_its_upper_directory(
    lay_out: LayOut,
) -> None:
    found = probe(
        lay_out(
            nvme(0)
            | mounts(
                "30 22 259:1 / /var rw - ext4 /dev/nvme0n1p1 rw",
                "31 22 0:60 / /data rw - overlay overlay rw,upperdir=/var/lib/up,workdir=/var/w",
            )
        )
    )

    assert (found.filesystem, found.drives) == ("overlay", ["nvme0n1"])
    assert not any("upperdir" in option for option in found.mount_options)


def test_an_overlay_in_a_container_says_that_its_drive_cannot_be_seen(lay_out: LayOut) -> None:
    line = "22 1 0:60 / / rw - overlay overlay rw,upperdir=/var/lib/docker/overlay2/x/diff"
    found = probe(lay_out({"proc/self/mountinfo": f"{line}\n"}))

    assert (found.device_kind, found.drives, found.stat_path) == ("unknown", [], None)
    assert "container" in (found.link_reason or "")


def test_the_deepest_and_newest_mount_holds_the_directory(lay_out: LayOut) -> None:
    root = lay_out(
        nvme(0)
        | mounts(
            "29 22 0:26 / /dat rw - ramfs ramfs rw",
            "30 22 0:27 / /data rw - tmpfs tmpfs rw",
            "31 30 0:28 / /data/kv rw - tmpfs old rw",
            "32 31 259:1 / /data/kv rw - ext4 /dev/nvme0n1p1 rw",
            "33 30 0:29 / /data/k rw - ramfs ramfs rw",
        )
    )

    assert probe(root, "data/kv/deep").filesystem == "ext4"
    assert probe(root, "data/kvother").filesystem == "tmpfs"


def test_a_mount_point_with_a_blank_is_found(lay_out: LayOut) -> None:
    line = r"30 22 259:1 / /my\040data rw - ext4 /dev/nvme0n1p1 rw"

    assert probe(lay_out(nvme(0) | mounts(line)), "my data").filesystem == "ext4"


def test_a_link_to_a_directory_is_followed_to_its_drive(lay_out: LayOut) -> None:
    root = lay_out(nvme(0) | mounts(DATA_ON_PARTITION) | {"data/kv/": "", "short": "-> data/kv"})

    assert probe_storage(root / "short", Tree(root)).block_device == "nvme0n1p1"


def test_without_proc_and_sys_the_directory_is_still_described(lay_out: LayOut) -> None:
    found = probe(lay_out({}))

    assert (found.filesystem, found.device_kind, found.drives) == (None, "unknown", [])
    assert found.free_bytes is not None
    assert found.link_reason


def test_a_directory_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    with pytest.raises(UsageError, match=r"missing does not exist: expected a directory.*--dir"):
        probe_storage(tmp_path / "missing", Tree())
    with pytest.raises(UsageError, match="is not a directory"):
        probe_storage(file, Tree())


def test_trying_direct_io_leaves_nothing_behind(tmp_path: Path) -> None:
    try_direct_io(tmp_path, None)

    assert list(tmp_path.iterdir()) == []


def direct_read(file: Path, offset: int, length: int) -> int:
    """Bytes read with O_DIRECT into page-aligned memory."""
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, max(length, mmap.PAGESIZE)) as buffer, memoryview(buffer) as view:
            return os.preadv(descriptor, [view[:length]], offset)
    finally:
        os.close(descriptor)


def test_direct_io_is_found_where_it_works_with_an_alignment_that_works(tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    file.write_bytes(bytes(64 * 1024))
    found = probe_storage(tmp_path, Tree())
    if found.device_kind == "memory":
        pytest.skip("the test directory is in memory")
    try:
        direct_read(file, 0, 4096)
    except OSError as error:
        pytest.skip(f"no O_DIRECT in the test directory: {error}")

    alignment = found.direct_io_alignment_bytes
    assert found.direct_io
    assert alignment is not None
    assert direct_read(file, alignment, alignment) == alignment


def test_a_directory_that_takes_no_file_is_not_writable_and_not_direct() -> None:
    found = try_direct_io(Path("/sys/kernel"), 512)  # not even root makes files in sysfs

    assert (found.writable, found.works) == (False, False)
    assert "not tried" in found.reason


def test_statx_answers_for_an_open_file_or_says_that_it_does_not(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        stated = dio_alignment(file.fileno())

    assert stated is None or all(value >= 0 for value in stated)
    assert dio_alignment(-1) is None
