"""The journal's disk: formatted only if it is empty, mounted so that a head without it can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from turnwise_deploy.journal_volume import VolumeError, aws_device, format_if_empty, main, mount

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
needs_e2fsprogs = pytest.mark.skipif(
    not (shutil.which("blkid", path=PATH) and shutil.which("mkfs.ext4", path=PATH)),
    reason="blkid and mkfs.ext4 are missing: apt-get install util-linux e2fsprogs",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for what only root may do: `mount` and `chown` write down what they are asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("mount", "chown"):
        _program(programs / name, f'echo "{name} $@" >> {tmp_path / "done"}')
    _program(programs / "sudo", 'shift; exec "$@"')
    monkeypatch.setenv("PATH", f"{programs}:{PATH}")
    return tmp_path


def _program(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An empty disk, as far as blkid and mkfs can tell."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    return disk


def identity(disk: Path) -> str:
    blkid = shutil.which("blkid", path=PATH) or "blkid"
    shown = subprocess.run([blkid, "-p", "-o", "export", disk], capture_output=True, text=True, check=True)
    return shown.stdout


@needs_e2fsprogs
def test_an_empty_disk_is_formatted_once(disk: Path, root: Path) -> None:
    assert format_if_empty(disk)
    made = identity(disk)
    assert "TYPE=ext4" in made
    assert not format_if_empty(disk)
    assert identity(disk) == made


@needs_e2fsprogs
def test_a_disk_with_a_partition_table_is_left_alone(disk: Path, root: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(446)
        file.write(bytes([0, 0, 2, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]))
        file.seek(510)
        file.write(b"\x55\xaa")
    before = disk.read_bytes()
    assert not format_if_empty(disk)
    assert disk.read_bytes() == before


def test_a_disk_that_cannot_be_read_is_not_formatted(root: Path) -> None:
    _program(root / "programs" / "blkid", "exit 4")
    _program(root / "programs" / "mkfs.ext4", f"touch {root / 'formatted'}")
    with pytest.raises(VolumeError, match="exit code 4"):
        format_if_empty(root / "disk")
    assert not (root / "formatted").exists()


def test_a_disk_is_mounted_and_listed_once_without_holding_up_a_boot(disk: Path, root: Path) -> None:
    fstab, folder = root / "fstab", root / "data"
    fstab.write_text("# of the machine\n")
    for _ in range(2):
        mount(disk, folder, fstab)
    first, entry = fstab.read_text().splitlines()
    assert first == "# of the machine"
    assert entry.split()[:3] == [str(disk), str(folder), "ext4"]
    assert "nofail" in entry.split()[3].split(",")
    done = (root / "done").read_text().splitlines()
    assert done[:2] == [f"mount {folder}", f"chown {os.getuid()}:{os.getgid()} {folder}"]


def test_files_that_a_mount_would_hide_stop_it(disk: Path, root: Path) -> None:
    folder = root / "data"
    folder.mkdir()
    (folder / "journal.sqlite").touch()
    with pytest.raises(VolumeError, match="they would be hidden"):
        mount(disk, folder, root / "fstab")
    assert not (root / "done").exists()


def test_a_volume_of_aws_is_found_by_its_id() -> None:
    assert aws_device("vol-0ab1") == Path("/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0ab1")


def test_a_failure_ends_the_setup_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _program(root / "programs" / "blkid", "exit 8")
    disk = root / "disk"
    disk.touch()
    assert main([str(root / "data"), "--device", str(disk)]) == 1
    assert "journal_volume: blkid" in capsys.readouterr().err
