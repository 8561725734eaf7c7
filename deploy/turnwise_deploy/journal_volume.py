"""`python -m turnwise_deploy.journal_volume FOLDER`: gives a head the disk that the journal lies on.

A cluster file runs it among the head's setup commands. It may be run again at any time: what is attached,
formatted, listed or mounted already stays as it is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

_METADATA = "http://169.254.169.254/latest"
_AWS_DEVICE = "/dev/sdf"
_NOTHING_FOUND = 2
"""blkid's exit code for a device with neither a filesystem nor a partition table. Others are failures."""


class VolumeError(RuntimeError):
    """The volume cannot be used as it is."""


def format_if_empty(device: Path) -> bool:
    """Makes a filesystem on a device that has nothing that blkid knows; tells whether it did.

    Raises:
        VolumeError: It cannot be told what is on the device.
    """
    probed = subprocess.run([*_as_root(), "blkid", "-p", str(device)], capture_output=True, text=True)
    if probed.returncode == 0:
        return False
    if probed.returncode != _NOTHING_FOUND:
        raise VolumeError(f"blkid -p {device}: exit code {probed.returncode} {probed.stderr.strip()}")
    _run("mkfs.ext4", "-q", "-m", "0", "-L", "turnwise", str(device))
    return True


def mount(device: Path, folder: Path, fstab: Path = Path("/etc/fstab")) -> None:
    """Mounts a device at a folder, now and at every boot, and hands it to the user who runs this.

    With `nofail`, so that a machine without its volume can be reached and mended.

    Raises:
        VolumeError: The folder has files, which the volume would hide.
    """
    if not os.path.ismount(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise VolumeError(f"{folder}: has files, but no volume: move them away, they would be hidden")
        line = f"{device} {folder} ext4 defaults,nofail,x-systemd.device-timeout=60s 0 2\n"
        if line not in fstab.read_text():
            _run("tee", "-a", str(fstab), stdin=line)
        _run("mount", str(folder))
    _run("chown", f"{os.getuid()}:{os.getgid()}", str(folder))


def attach_aws(ec2: Any, volume: str, machine: str, wait_s: float = 180.0) -> None:
    """Attaches a volume to this machine.

    Args:
        ec2: boto3's client.
        volume: The volume's id.
        machine: This machine's.
        wait_s: How long a head that is going down may hold the volume.

    Raises:
        VolumeError: Another machine has it.
    """
    holders: list[str] = []

    def is_ours_or_free() -> bool:
        (found,) = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        holders[:] = [at["InstanceId"] for at in found["Attachments"]]
        return not holders or machine in holders

    if not _wait_for(is_ours_or_free, wait_s):
        raise VolumeError(f"{volume}: attached to {', '.join(holders)}; wanted a volume that is free")
    if machine not in holders:
        ec2.attach_volume(VolumeId=volume, InstanceId=machine, Device=_AWS_DEVICE)


def aws_device(volume: str) -> Path:
    """Where Linux shows an EBS volume on machines with NVMe, whatever name it was attached by."""
    return Path(f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}")


def main(arguments: list[str] | None = None) -> int:
    """Attaches, formats if empty, mounts."""
    parser = argparse.ArgumentParser(prog="python -m turnwise_deploy.journal_volume", description=__doc__)
    parser.add_argument("folder", type=Path, help="the learner's data folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--aws-volume", metavar="VOL", help="an EBS volume; it is attached first")
    which.add_argument("--device", type=Path, help="a disk that is attached already")
    given = parser.parse_args(arguments)
    try:
        device = _attached_aws(given.aws_volume) if given.aws_volume else given.device
        if not _wait_for(device.exists, 60.0):
            raise VolumeError(f"{device}: there is no such disk")
        made = format_if_empty(device)
        mount(device, given.folder.absolute())
    except (VolumeError, OSError) as error:
        print(f"journal_volume: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"journal_volume: {device} at {given.folder}{', new and empty' if made else ''}")  # noqa: T201
    return 0


def _attached_aws(volume: str) -> Path:
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise VolumeError("boto3 is missing; install it with: pip install boto3") from error
    machine, region = _about_this_machine("instance-id"), _about_this_machine("placement/region")
    attach_aws(boto3.client("ec2", region_name=region), volume, machine)
    return aws_device(volume)


def _about_this_machine(what: str) -> str:
    """What EC2 tells a machine about itself, by the second version of its metadata service."""
    asked = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _fetch(urllib.request.Request(f"{_METADATA}/api/token", method="PUT", headers=asked))
    brought = {"X-aws-ec2-metadata-token": token}
    return _fetch(urllib.request.Request(f"{_METADATA}/meta-data/{what}", headers=brought))


def _fetch(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=5.0) as answer:
        return str(answer.read().decode())


def _wait_for(holds: Callable[[], bool], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(2.0)
    return True


def _run(*command: str, stdin: str = "") -> None:
    ran = subprocess.run([*_as_root(), *command], input=stdin, capture_output=True, text=True)
    if ran.returncode != 0:
        raise VolumeError(f"{' '.join(command)}: exit code {ran.returncode} {ran.stderr.strip()}")


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]


if __name__ == "__main__":
    sys.exit(main())
