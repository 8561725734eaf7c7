from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from turnwise.v1 import training_pb2
from turnwise_actor.policy import (
    Domain,
    Policy,
    PolicyFileError,
    PolicyVersion,
    default_spec,
    initial_policy,
)
from turnwise_actor.weights import (
    BrokenTransferError,
    FileElsewhereError,
    Policies,
    UnfitPolicyError,
    load_policy,
    receive_policies,
)

from .conftest import DOMAIN, ActorFactory, eventually, make_policy, version_in_force
from .learner_end import LearnerEnd, chunks_of, file_of


async def collect(chunks: list[training_pb2.PolicyChunk]) -> list[Policy]:
    async def stream() -> AsyncIterator[training_pb2.PolicyChunk]:
        for chunk in chunks:
            yield chunk

    return [policy async for policy in receive_policies(stream())]


def test_versions_never_go_back_but_to_a_higher_generation(domain: Domain) -> None:
    policies = Policies(domain)
    told: list[str] = []
    policies.on_change(lambda policy: told.append(str(policy.version)))
    for version in ("1.1", "1.3", "1.2", "1.3", "2.1", "1.9", "2.0"):
        policies.install(make_policy(domain, version))
    assert told == ["1.1", "1.3", "2.1"]
    assert policies.current is not None
    assert policies.current.version == PolicyVersion(2, 1)


def test_the_last_three_are_kept(domain: Domain) -> None:
    policies = Policies(domain)
    for number in range(1, 6):
        policies.install(make_policy(domain, f"1.{number}"))
    assert [policy.version.number for policy in policies.kept] == [3, 4, 5]


def test_a_policy_of_another_shape_is_refused_and_named(domain: Domain) -> None:
    policies = Policies(domain)
    policies.install(make_policy(domain))
    grown = Domain.from_yaml(DOMAIN.replace("{id: handoff}", "{id: handoff}\n  - {id: more}"))
    with pytest.raises(UnfitPolicyError, match=f"{grown.fingerprint}.*{domain.fingerprint}"):
        policies.install(make_policy(grown, "9.9"))
    lying = replace(make_policy(grown, "9.9"), fingerprint=domain.fingerprint)
    with pytest.raises(UnfitPolicyError, match="inputs, actions"):
        policies.install(lying)
    assert policies.current is not None
    assert policies.current.version.generation == 1


async def test_chunks_become_policies(domain: Domain) -> None:
    one, two = make_policy(domain, "1.1"), make_policy(domain, "1.2")
    got = await collect([*chunks_of(one), *chunks_of(two)])
    assert [policy.version for policy in got] == [one.version, two.version]
    assert len(chunks_of(one)) > 1


async def test_a_file_cut_off_by_a_newer_one_is_given_up(domain: Domain) -> None:
    got = await collect([chunks_of(make_policy(domain, "1.1"))[0], *chunks_of(make_policy(domain, "1.2"))])
    assert [policy.version.number for policy in got] == [2]


async def test_a_gap_between_chunks_is_noticed(domain: Domain) -> None:
    chunks = chunks_of(make_policy(domain))
    with pytest.raises(BrokenTransferError, match="wanted the next at"):
        await collect([chunks[0], *chunks[2:]] if len(chunks) > 2 else chunks[1:])


async def test_an_altered_file_is_not_believed(domain: Domain) -> None:
    chunks = chunks_of(make_policy(domain))
    chunks[-1].data = chunks[-1].data[:-1] + b"\x7f"
    with pytest.raises(PolicyFileError):
        await collect(chunks)


async def test_a_file_of_this_machine_is_mapped_and_answers_alike(domain: Domain, tmp_path: Path) -> None:
    policy = make_policy(domain)
    (mapped,) = await collect([file_of(policy, tmp_path)])
    (sent,) = await collect(chunks_of(policy))
    assert (mapped.version, mapped.exploration, mapped.spec) == (sent.version, sent.exploration, sent.spec)
    assert all((mapped.parameters[name] == sent.parameters[name]).all() for name in sent.parameters)
    obs = np.random.default_rng(0).random((9, policy.spec.inputs), np.float32)
    before = mapped.network.q_values(obs)
    (tmp_path / f"{policy.version}.safetensors").unlink()
    assert (mapped.network.q_values(obs) == before).all()
    assert (before == sent.network.q_values(obs)).all()


@pytest.mark.parametrize(("units", "waits"), [(8, False), (3000, True)])
async def test_only_a_big_file_is_read_beside_the_event_loop(
    domain: Domain, tmp_path: Path, units: int, waits: bool
) -> None:
    policy = initial_policy(domain, replace(default_spec(domain), hidden=(units,)))
    meanwhile: list[str] = []
    asyncio.get_running_loop().call_soon(meanwhile.append, "answered")
    (mapped,) = await collect([file_of(policy, tmp_path)])
    assert (mapped.parameters["hidden.0.weight"] == policy.parameters["hidden.0.weight"]).all()
    assert bool(meanwhile) is waits


@pytest.mark.parametrize("number", ["device", "inode", "modified_ns"])
async def test_a_file_of_another_machine_is_not_believed(domain: Domain, tmp_path: Path, number: str) -> None:
    notice = file_of(make_policy(domain), tmp_path)
    setattr(notice.file, number, getattr(notice.file, number) + 1)
    with pytest.raises(FileElsewhereError, match="another file here"):
        await collect([notice])


async def test_a_file_that_is_not_there_or_has_another_size_is_not_believed(
    domain: Domain, tmp_path: Path
) -> None:
    notice = file_of(make_policy(domain), tmp_path)
    notice.total += 1
    with pytest.raises(FileElsewhereError, match="another file here"):
        await collect([notice])
    (tmp_path / "1.1.safetensors").unlink()
    with pytest.raises(FileElsewhereError, match="is not here"):
        await collect([notice])


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_an_actor_maps_files_that_it_finds_and_is_sent_the_others(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain, tmp_path: Path, elsewhere: bool
) -> None:
    learner.folder, learner.elsewhere = tmp_path, elsewhere
    actor, _ = await new_actor()
    for version in ("1.2", "1.3"):
        await learner.publish(make_policy(domain, version))
        await eventually(lambda version=version: version_in_force(actor) == version)
    assert learner.told_of_files is not elsewhere


async def test_an_actor_that_came_too_late_for_a_file_maps_the_next(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain, tmp_path: Path
) -> None:
    learner.folder = tmp_path
    actor, _ = await new_actor()
    await learner.publish(make_policy(domain, "1.2"))
    await eventually(lambda: version_in_force(actor) == "1.2")
    learner.elsewhere = True  # as if it had been removed
    await learner.publish(make_policy(domain, "1.3"))
    await asyncio.sleep(0.2)
    learner.elsewhere = False
    await learner.publish(make_policy(domain, "1.4"))
    await eventually(lambda: version_in_force(actor) == "1.4")
    assert learner.told_of_files


def test_the_newest_of_a_folder_is_loaded(domain: Domain, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    assert load_policy(folder) is None
    for version in ("1.9", "1.10", "0.99"):
        (folder / f"{version}.safetensors").write_bytes(make_policy(domain, version).to_bytes())
    (folder / "other.safetensors").write_bytes(b"")
    newest = load_policy(folder)
    assert newest is not None
    assert str(newest.version) == "1.10"


async def test_policies_come_again_after_the_learner_was_away(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    actor, _ = await new_actor()
    await learner.publish(make_policy(domain, "1.2"))
    await eventually(lambda: version_in_force(actor) == "1.2")
    await learner.stop()
    await learner.publish(make_policy(domain, "2.1"))
    await learner.start()
    await eventually(lambda: version_in_force(actor) == "2.1")
    await eventually(lambda: learner.reports[-1].policy_version.generation == 2)


async def test_an_unfit_policy_from_the_learner_is_told_of_and_the_next_is_taken(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    actor, _ = await new_actor()
    unfit = replace(make_policy(domain, "1.2"), fingerprint="0123456789abcdef")
    with caplog.at_level(logging.ERROR):
        await learner.publish(unfit)
        await eventually(lambda: "0123456789abcdef" in caplog.text)
    await learner.publish(make_policy(domain, "1.3"))
    await eventually(lambda: version_in_force(actor) == "1.3")
