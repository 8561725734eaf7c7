"""The folder of published policies."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from turnwise_actor.policy import (
    Domain,
    Exploration,
    Policy,
    PolicyVersion,
    initial_policy,
    policy_files,
)
from turnwise_learner.service.broadcast import newest_policy
from turnwise_learner.trainer.versions import VersionFolder

DOMAIN = Domain.load(Path(__file__).parents[3] / "examples/quickstart/domain.yaml")


def algorithm() -> Any:
    """As much of one as publishing looks at."""
    policy = initial_policy(DOMAIN)
    return SimpleNamespace(
        pacer=SimpleNamespace(learned_through=7),
        module=SimpleNamespace(spec=policy.spec, policy_parameters=lambda: policy.parameters),
        learner=SimpleNamespace(updates=3),
    )


def test_what_a_killed_process_left_half_written_stops_nobody(tmp_path: Path) -> None:
    VersionFolder(tmp_path, DOMAIN.fingerprint, 1).publish(algorithm(), Exploration())
    leftovers = [tmp_path / name for name in (".aside-1.2.safetensors", ".aside-LATEST")]
    others = [tmp_path / name for name in (".1.3.safetensors", "mine.safetensors", "1.2.3.safetensors")]
    for file in leftovers + others:
        file.write_bytes(b"half")
    folder = VersionFolder(tmp_path, DOMAIN.fingerprint, 2)
    assert not any(file.exists() for file in leftovers)
    assert all(file.exists() for file in others)
    published = folder.publish(algorithm(), Exploration())
    assert Policy.from_bytes(published.read_bytes()).version == PolicyVersion(2, 1)
    assert [str(version) for version in policy_files(tmp_path)] == ["1.1", "2.1"]


def test_the_oldest_files_go_first_by_version_not_by_name(tmp_path: Path) -> None:
    folder = VersionFolder(tmp_path, DOMAIN.fingerprint, 1, keep=12)
    for _ in range(11):
        folder.publish(algorithm(), Exploration())
    VersionFolder(tmp_path, DOMAIN.fingerprint, 2, keep=3).publish(algorithm(), Exploration())
    assert [str(version) for version in policy_files(tmp_path)] == ["1.10", "1.11", "2.1"]


def test_latest_leads_to_the_newest(tmp_path: Path) -> None:
    folder = VersionFolder(tmp_path, DOMAIN.fingerprint, 1)
    (tmp_path / "LATEST").write_text("1.0.safetensors")  # as it once was
    for number in (1, 2):
        folder.publish(algorithm(), Exploration())
        newest = newest_policy(tmp_path, DOMAIN.fingerprint)
        assert newest is not None
        assert (
            newest[0] == tmp_path / f"1.{number}.safetensors" == tmp_path / (tmp_path / "LATEST").readlink()
        )
        assert newest[1].version.number == number


def test_big_policies_are_fewer(tmp_path: Path) -> None:
    size = initial_policy(DOMAIN).spec.parameter_count * 4
    for keep_bytes, kept in ((7 * size, 7), (2 * size, 5)):
        folder = VersionFolder(tmp_path, DOMAIN.fingerprint, 1, keep_bytes=keep_bytes)
        for _ in range(9):
            last = folder.publish(algorithm(), Exploration())
        assert len(policy_files(tmp_path)) == kept
        assert last.exists()
