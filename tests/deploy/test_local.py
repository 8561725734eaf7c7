"""The supervisor, over small stand-in processes: real children, real ports, real signals."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.waiting import alive, eventually
from turnwise_deploy.child import Child
from turnwise_deploy.data_folder import DataFolderInUseError
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

REPOSITORY = Path(__file__).parents[2]
DOMAIN = REPOSITORY / "examples/quickstart/domain.yaml"
PARTS = [str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    stand_ins = str(Path(__file__).parent / "stand_ins")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([stand_ins, *PARTS]))


@pytest.fixture
def config(tmp_path):
    return LocalConfig(domain=DOMAIN, data=tmp_path / "data", actors=2, port=0, learner_port=0)


def children_of(process):
    """Their pids, whichever thread has started them."""
    pids = []
    for file in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            pids += map(int, file.read_text().split())
    return pids


def up_command(config, *options):
    """`turnwise up` in a process of its own; its own packages come before the stand-ins."""
    code = f"import sys; sys.path[:0] = {PARTS!r}; from turnwise_cli.__main__ import main; sys.exit(main())"
    places = ("--domain", str(config.domain), "--data", str(config.data))
    ports = ("--actors", str(config.actors), "--port", "0", "--learner-port", "0")
    return subprocess.Popen(
        [sys.executable, "-c", code, "up", *places, *ports, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_serves_at_the_ports_it_names(config):
    with LocalDeployment(config) as up:
        assert len(up.actors) == 2
        for address in (*up.actors, up.learner):
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()


def test_children_are_gone_and_the_learner_has_saved_after_the_actors_when_it_has_stopped(config):
    with LocalDeployment(config) as up:
        pids = list(up.pids().values())
    assert not any(alive(pid) for pid in pids)
    assert (config.data / "saved").read_text() == "0 actors were left"


def test_token_keys_are_for_the_owner_alone_and_are_kept(config):
    with LocalDeployment(config) as up:
        file = up.folder.keys
        first = json.loads(file.read_text())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert first["active"] in first["keys"]
    with LocalDeployment(config):
        assert json.loads(file.read_text()) == first


@pytest.mark.parametrize("part", ["actor", "learner"])
def test_a_child_that_dies_is_started_again_on_its_port(config, part):
    told = []
    with LocalDeployment(config, say=told.append) as up:
        address = up.actors[1] if part == "actor" else up.learner
        pid = up.pids()[address]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: up.pids()[address] not in (None, pid))
        up.wait_ready()
        assert any(f"the {part}" in line and "signal 9" in line for line in told)


def test_actors_are_restarted_one_after_the_other_on_their_ports(config):
    told = []
    with LocalDeployment(config, say=told.append) as up:
        before, seen = up.pids(), []
        codes = {}

        def restart():
            codes.update(up.restart_actors())

        restarting = threading.Thread(target=restart)
        restarting.start()
        while restarting.is_alive():
            seen.append(up.pids())
            time.sleep(0.005)
        after = up.pids()
    assert codes == dict.fromkeys(up.actors, 0)
    assert after[up.learner] == before[up.learner]
    assert all(after[actor] not in (None, before[actor]) for actor in up.actors)
    down = [[actor for actor in up.actors if pids[actor] is None] for pids in seen]
    assert max(map(len, down)) <= 1
    assert not any("ended with" in line or "killed" in line for line in told), told


def test_an_actor_that_does_not_drain_is_killed_and_started_again(config):
    quick = LocalConfig(**{**vars(config), "actors": 1, "actor_drain_s": 0.3})
    told = []
    with LocalDeployment(quick, say=told.append) as up:
        stuck = up.pids()[up.actors[0]]
        assert stuck is not None
        os.kill(stuck, signal.SIGSTOP)
        restarting = threading.Thread(target=up.restart_actors)
        restarting.start()
        eventually(lambda: up.pids()[up.actors[0]] not in (None, stuck))
        restarting.join(20)
        assert not restarting.is_alive()
    assert any("signal 9" in line for line in told), told


def test_a_second_deployment_in_one_data_folder_is_refused(config):
    with LocalDeployment(config), pytest.raises(DataFolderInUseError, match=f"pid {os.getpid()}"):
        LocalDeployment(config).start()


def test_a_port_in_use_is_named_with_its_setting(config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for setting in ("port", "learner_port", "metrics_port"):
            name = f"--{setting.replace('_', '-')}"
            wanted = LocalConfig(**{**vars(config), "actors": 1, setting: port})
            with pytest.raises(DeploymentError, match=rf"port {port} .* {name}"):
                LocalDeployment(wanted).start()


def test_a_domain_that_is_wrong_is_refused_before_anything_starts(config, tmp_path):
    bad = tmp_path / "domain.yaml"
    bad.write_text("name: x\nstate: {}\nactions: []\n")
    with pytest.raises(DeploymentError, match="actions"):
        LocalDeployment(LocalConfig(**{**vars(config), "domain": bad})).start()
    with pytest.raises(DeploymentError, match="no domain file"):
        LocalDeployment(LocalConfig(**{**vars(config), "domain": tmp_path / "none.yaml"})).start()
    assert not config.data.exists()


@pytest.mark.parametrize("code", ["1", "2"])
def test_a_learner_that_cannot_start_ends_the_deployment_with_its_last_words(config, monkeypatch, code):
    def slow_log_tail(child):
        time.sleep(0.5)  # nobody may be told the half meanwhile
        return log_tail(child)

    log_tail = Child.log_tail
    monkeypatch.setattr(Child, "log_tail", slow_log_tail)
    monkeypatch.setenv("LEARNER_EXIT", code)
    deployment = LocalDeployment(config)
    with pytest.raises(DeploymentError, match=f"exit code {code} while starting.*\n.*another planet"):
        deployment.start()
    assert not any(deployment.pids().values())


def test_an_address_that_others_reach_is_refused_before_anything_starts(config):
    open_to_all = LocalConfig(**{**vars(config), "host": "0.0.0.0"})
    with pytest.raises(DeploymentError, match=r"0\.0\.0\.0:0 can be reached .* --tls-cert"):
        LocalDeployment(open_to_all).start()
    assert not config.data.exists()
    process = up_command(config, "--host", "0.0.0.0")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "--tls-client-ca or --credentials; or --insecure" in err


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(DeploymentError, match="at least 1"):
        LocalConfig(domain=DOMAIN, actors=0)
    with pytest.raises(DeploymentError, match="50052 is wanted by the learner"):
        LocalConfig(domain=DOMAIN, actors=2, learner_port=50052)
    with pytest.raises(DeploymentError, match="70000"):
        LocalConfig(domain=DOMAIN, port=70000)
    for port in (-1, 65534):  # three are wanted
        with pytest.raises(DeploymentError, match=f"--metrics-port: got {port}"):
            LocalConfig(domain=DOMAIN, actors=2, metrics_port=port)
    LocalConfig(domain=DOMAIN, actors=2, metrics_port=65533)


def test_up_prints_one_ready_line_and_ends_with_zero_on_sigint(config):
    process = up_command(config)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready actors=127.0.0.1:")
    assert " learner=127.0.0.1:" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""
    assert str(config.data) in err
    assert "Traceback" not in err
    assert (config.data / "saved").exists()


def test_with_a_metrics_port_each_part_is_told_one_and_the_ready_line_names_them(config):
    process = up_command(config, "--metrics-port", "0")
    assert process.stdout is not None
    actors, learner, metrics = process.stdout.readline().removeprefix("ready ").split()
    addresses = metrics.removeprefix("metrics=").split(",")
    parts = [learner.removeprefix("learner="), *actors.removeprefix("actors=").split(",")]
    told = {}
    for pid in children_of(process):
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        told[arguments[arguments.index("--listen") + 1]] = arguments[arguments.index("--metrics-listen") + 1]
    assert told == dict(zip(parts, addresses, strict=True))
    assert len({*parts, *addresses}) == 6
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_second_ctrl_c_kills(config, monkeypatch):
    monkeypatch.setenv("LEARNER_STUCK", "1")
    process = up_command(config)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("ready ")
    process.send_signal(signal.SIGINT)
    while "saves a checkpoint" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 1


def test_ctrl_c_before_it_is_ready_stops_it_too(config):
    process = up_command(config)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("turnwise: waiting for")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""


def test_sigusr1_restarts_the_actors_and_it_goes_on(config):
    process = up_command(config)
    assert process.stdout is not None
    ready = process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    said = []
    while "all actors have been restarted" not in (said or [""])[-1]:
        said.append(process.stderr.readline())
        assert process.poll() is None, said
    actors = ready.split()[1].removeprefix("actors=").split(",")
    assert [line.split()[-1] for line in said if "restarting the actor" in line] == actors
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_children_end_when_the_supervisor_is_killed_and_the_next_up_waits_for_them(config):
    process = up_command(config)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready ")
    pids = children_of(process)
    assert len(pids) == 3
    process.kill()
    process.communicate(timeout=10)
    with LocalDeployment(config):
        assert not any(alive(pid) for pid in pids)
