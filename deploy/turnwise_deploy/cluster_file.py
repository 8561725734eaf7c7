"""A cluster's YAML, read and checked before `ray up` acts on it.

Ray checks the outer keys and hands `provider` and `node_config` to the cloud as they are: a typo there shows
when machines run already, one in a worker's only in a log on the head. Here all of a file's mistakes are
told at once, and nothing is asked of any cloud.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from turnwise_actor.policy import Problem
from turnwise_actor.policy.domain_file import did_you_mean, show
from turnwise_deploy.cluster_keys import NODE_CONFIG, PROVIDER, REQUIRED, Keys
from turnwise_deploy.cluster_network import network_problems

PLACEHOLDER = "CHANGE-ME"
"""What the shipped files say where a value is the reader's own."""

_PLACE = re.compile(r"\bturnwise\s+cluster\s+place\b")
_ACTORS = re.compile(r"--actors[ =](\d+)")
_DATA = re.compile(r"--data[ =](\S+)")
_V1 = re.compile(r"\bRAY_enable_autoscaler_v2=0\b")
_RAYS_MAX_WORKERS = 2
_CLOUD_USER = "ubuntu"
_HEAD_START = re.compile(r"\bray\s+start\b.*--head\b", re.S)


class ClusterFileError(ValueError):
    """A cluster file that cannot be used. Lists every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem], source: str) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} error{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n  ".join([f"{source}: {count}", *map(str, self.problems)]))


@dataclass(frozen=True)
class ClusterFile:
    """What the product itself needs to know of a cluster file that is in order."""

    path: Path
    cluster_name: str
    provider: str
    """local, aws or gcp."""
    head_ip: str | None
    """Of a local cluster; a cloud's is not known before `ray up`."""
    worker_ips: tuple[str, ...]
    """Of a local cluster."""
    ssh_user: str
    ssh_private_key: Path | None
    """None: Ray makes one, and finds it again."""
    data: str | None
    """The nodes' data folder, as `turnwise cluster place` is told; None: the default."""
    warnings: tuple[Problem, ...]
    """What only `ray up` will miss, or what may be meant."""


def load(path: Path) -> ClusterFile:
    """Reads a cluster file.

    Raises:
        ClusterFileError: It cannot be read, or something in it is wrong.
    """
    config = _read(path)
    shape = list(_shape_problems(config))
    problems = [*_placeholders(config), *shape]
    if not shape:
        problems += [*_problems(config), *_ray_problems(config)]
    if problems:
        raise ClusterFileError(problems, str(path))
    provider, auth = config["provider"], config.get("auth") or {}
    key = auth.get("ssh_private_key")
    return ClusterFile(
        path=path,
        cluster_name=config["cluster_name"],
        provider=provider["type"],
        head_ip=provider.get("head_ip"),
        worker_ips=tuple(map(str, provider.get("worker_ips", ()))),
        ssh_user=auth.get("ssh_user", _CLOUD_USER),
        ssh_private_key=None if key is None else Path(key).expanduser(),
        data=_of_place(config, _DATA),
        warnings=tuple(_warnings(config)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(), _Loader)
        json.dumps(config)  # as Ray hands it to the head: no dates, nothing that holds itself
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        problem = Problem("cluster file", f"unreadable text ({error})", "valid YAML")
        raise ClusterFileError([problem], str(path)) from error
    if not isinstance(config, dict):
        raise ClusterFileError([Problem("cluster file", show(config), "a mapping")], str(path))
    return config


class _Loader(yaml.SafeLoader):
    """As Ray reads, but a key twice is an error: Ray would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _shape_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Types and keys: what has to be right before anything else can be looked at."""
    yield from _schema_problems(json.loads(json.dumps(config)))
    provider = config.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        return
    kind = provider["type"]
    if kind not in PROVIDER:
        hint = did_you_mean(kind, PROVIDER)
        yield Problem("provider.type", show(kind), f"one of {', '.join(sorted(PROVIDER))}{hint}")
        return
    yield from _unknown_keys("provider", provider, PROVIDER[kind])
    for key in () if "coordinator_address" in provider else REQUIRED[kind]:
        if provider.get(key) in (None, "", []):
            yield Problem(f"provider.{key}", "nothing", f"a value: {kind} clusters need it")
    for name, node_type in _mapping(config.get("available_node_types")).items():
        field = f"available_node_types.{name}.node_config"
        if isinstance(node_type, dict) and kind in NODE_CONFIG:
            yield from _unknown_keys(field, node_type.get("node_config"), NODE_CONFIG[kind])


def _schema_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """All that Ray's schema says; Ray's own check stops at the first."""
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    if _mapping(config.get("provider")).get("type") == "local":
        # Ray takes it out of a local cluster's file before it looks at the schema.
        config.pop("min_workers", None)
    for node_type in _mapping(config.get("available_node_types")).values():
        if isinstance(node_type, dict):
            node_type.setdefault("resources", {})  # which Ray fills in where it is missing
    errors = jsonschema.Draft7Validator(schema).iter_errors(config)
    for error in sorted(errors, key=lambda error: list(map(str, error.absolute_path))):
        yield from _problems_of(error)


def _problems_of(error: Any) -> Iterator[Problem]:
    """A jsonschema error in our words."""
    field = _dotted(error.absolute_path)
    if error.validator == "additionalProperties":
        yield from _unknown_keys(field, error.instance, dict.fromkeys(error.schema.get("properties", ())))
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                yield Problem(_join(field, key), "nothing", "a value: Ray needs it")
    elif error.validator == "type":
        wanted = f"of the type {error.validator_value}"
        if error.validator_value == "string" and isinstance(error.instance, dict):
            wanted += "; where a text has `: ` in it, YAML wants the whole of it in quotes"
        yield Problem(field or "cluster file", show(error.instance), wanted)
    else:
        yield Problem(field or "cluster file", show(error.instance), error.message)


def _unknown_keys(field: str, value: object, known: Keys) -> Iterator[Problem]:
    """Keys that nobody reads, at any depth that is known."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(f"{field}[{index}]", item, known)
        return
    for key, inner in _mapping(value).items():
        if key not in known:
            close = did_you_mean(key, known)
            wanted = f"a known key{close}" if close else f"one of {', '.join(sorted(known))}"
            yield Problem(_join(field, key), "an unknown key", wanted)
        elif nested := known[key]:
            yield from _unknown_keys(_join(field, key), inner, nested)


def _problems(config: dict[str, Any]) -> Iterator[Problem]:
    """What the product wants of a file whose shape is right."""
    yield from _login_problems(config)
    yield from _worker_problems(config)
    yield from _head_start_problems(config)
    yield from network_problems(config)


def _placeholders(config: dict[str, Any]) -> Iterator[Problem]:
    """Values nobody has set. What an alias puts in again is told of once, where its anchor stands."""
    seen = set[int]()
    for field, value in _strings(config):
        if PLACEHOLDER in value and id(value) not in seen:
            seen.add(id(value))
            words = " ".join(word.strip("\"'") for word in value.split() if PLACEHOLDER in word)
            yield Problem(field, show(words), f"your own value in place of {PLACEHOLDER}")


def _strings(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{field}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, _join(field, key))


def _login_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Ray knows a user of its own only where a cloud's file has no `auth` at all."""
    auth = config.get("auth", {} if config["provider"]["type"] == "local" else None)
    if auth is not None and not auth.get("ssh_user"):
        yield Problem("auth.ssh_user", "nothing", "the user who installs and runs the bot on the machines")


def _worker_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """Machines for the actors: `turnwise cluster place` asks Ray for the resource actor_node for each."""
    provider, wanted = config["provider"], "actor_node: 1 on the machines that actors run on"
    if provider["type"] == "local":
        commands, workers = config.get("worker_start_ray_commands", []), provider.get("worker_ips", [])
        if not any("actor_node" in command for command in commands):
            # Ray hands no resources to the machines of a local cluster.
            option = """ray start … --resources='{"actor_node":1}'"""
            yield Problem("worker_start_ray_commands", "no actor_node", f"{option}, that is {wanted}")
        if provider.get("head_ip") in workers:
            yield Problem("provider.worker_ips", show(provider["head_ip"]), "machines other than the head")
        places, field = len(workers), "provider.worker_ips"
    else:
        places, field = _places(config), "max_workers"
        if not any(_actor_nodes(node_type) for node_type in _worker_types(config)):
            yield Problem("available_node_types", "no worker with the resource actor_node", wanted)
            return
    actors = int(_of_place(config, _ACTORS) or 0)
    if "coordinator_address" not in provider and places < actors:
        yield Problem(field, f"machines for {places} actors", f"as many as `--actors {actors}` asks for")


def _places(config: dict[str, Any]) -> int:
    """Actors that the workers of a cloud cluster have room for, as many as there may be of them."""
    places, left = 0, config.get("max_workers", _RAYS_MAX_WORKERS)
    for node_type in sorted(_worker_types(config), key=_actor_nodes, reverse=True):
        machines = min(left, node_type.get("max_workers", left))
        places, left = places + machines * _actor_nodes(node_type), left - machines
    return places


def _actor_nodes(node_type: dict[str, Any]) -> int:
    return int(node_type.get("resources", {}).get("actor_node", 0))


def _worker_types(config: dict[str, Any]) -> list[dict[str, Any]]:
    types = config.get("available_node_types", {})
    return [node_type for name, node_type in types.items() if name != config.get("head_node_type")]


def _of_place(config: dict[str, Any], option: re.Pattern[str]) -> str | None:
    """What `turnwise cluster place` is told with an option."""
    for command in config.get("head_start_ray_commands", ()):
        if _PLACE.search(command) and (given := option.search(command)):
            return given[1]
    return None


def _head_start_problems(config: dict[str, Any]) -> Iterator[Problem]:
    field, commands = "head_start_ray_commands", config.get("head_start_ray_commands", [])
    if not any(_PLACE.search(command) for command in commands):
        yield Problem(field, "no `turnwise cluster place`", "it as the last command: it starts the bot")
    if config["provider"]["type"] == "local":
        for command in commands:
            if _HEAD_START.search(command) and not _V1.search(command):
                wanted = "export RAY_enable_autoscaler_v2=0; before it: version 2 brings up no workers here"
                yield Problem(field, show(command), wanted)


def _ray_problems(config: dict[str, Any]) -> Iterator[Problem]:
    """What Ray says itself, about what its schema cannot."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    said = io.StringIO()
    try:
        with _quiet(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            prepared = prepare_config(config)
            for node_type in prepared["available_node_types"].values():
                node_type.setdefault("resources", {})
            validate_config(prepared)
    except Exception as error:  # noqa: BLE001 - Ray raises what comes; whatever it is, the file is refused
        message = str(error) or said.getvalue().strip() or type(error).__name__
        field = next((key for key in re.findall(r"`(\w+)`", message) if key in config), "cluster file")
        yield Problem(field, show(config.get(field, "this file")), f"as Ray says: {message}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray logs of the values it fills in."""
    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _warnings(config: dict[str, Any]) -> Iterator[Problem]:
    for remote, local in config.get("file_mounts", {}).items():
        if not Path(str(local)).expanduser().exists():
            wanted = "a file or folder of this machine: `ray up` copies it to the nodes"
            yield Problem(f"file_mounts.{remote}", show(local), wanted)
    if config["provider"]["type"] != "local":
        for command in config.get("head_start_ray_commands", ()):
            if _PLACE.search(command) and re.search(r"--insecure\b", command):
                wanted = "--tls-cert, --tls-key and --credentials: whoever reaches the actors can teach them"
                yield Problem("head_start_ray_commands", "--insecure", wanted)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _join(field: str, key: object) -> str:
    return f"{field}.{key}" if field else str(key)


def _dotted(path: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
