"""The Google Cloud cluster file, launched by Ray's own code into a double within this process.

The double knows no more of Google Cloud than its published API description, which comes with
google-api-python-client: a machine with a field that Compute Engine does not have is refused.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.ray_nodes import create_node
from turnwise_deploy import cluster_keys
from turnwise_deploy.cluster_file import load

reason = "google-api-python-client is missing: pip install google-api-python-client google-auth-httplib2"
httplib2 = pytest.importorskip("httplib2", reason=reason)
discovery_cache = pytest.importorskip("googleapiclient.discovery_cache", reason=reason)
pytest.importorskip("google_auth_httplib2", reason=reason)

FILE = Path(__file__).parents[2] / "deploy" / "ray" / "gcp.yaml"
SCHEMAS = json.loads(discovery_cache.get_static_doc("compute", "v1"))["schemas"]
NOT_THE_FILES = {"name", "zone", "fingerprint", "labelFingerprint"}
"""Ray's to set, or for changing what is there already."""


def fields_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a schema, or of what it is a list of or refers to; none: it is a plain value."""
    if "items" in schema:
        return fields_of(schema["items"])
    if "$ref" in schema:
        return fields_of(SCHEMAS[schema["$ref"]])
    return schema.get("properties", {})


def settable(fields: Mapping[str, Any]) -> dict[str, Any]:
    told = {
        name: field for name, field in fields.items() if "Output Only]" not in field.get("description", "")
    }
    return {name: field for name, field in told.items() if not field.get("readOnly")}


def check(value: object, schema: Mapping[str, Any], path: str = "") -> None:
    """As Compute Engine refuses a field that it does not know."""
    if isinstance(value, list):
        for item in value:
            check(item, schema, path)
    elif isinstance(value, dict) and (fields := fields_of(schema)):
        for name, inner in value.items():
            assert name in fields, f"Unknown name {path}.{name}"
            check(inner, fields[name], f"{path}.{name}")


class GoogleCloud:
    """A project with nothing in it, and what is made of machines there."""

    def __init__(self) -> None:
        self.machines: dict[str, dict[str, Any]] = {}
        self.roles = set[str]()

    def answer(self, method: str, path: str, body: Any) -> Any:
        done = {"name": "operation", "status": "DONE"}
        match method, re.sub(r"^/(compute/)?v1", "", path).split("/")[1:]:
            case "GET", ["projects", project]:
                named = {"projectId": project, "name": project, "lifecycleState": "ACTIVE"}
                return {**named, "commonInstanceMetadata": {"items": []}}
            case "GET", ["projects", project, "serviceAccounts", email]:
                return {"email": email, "projectId": project}
            case "POST", ["projects", name] if name.endswith(":getIamPolicy"):
                return {"bindings": []}
            case "POST", ["projects", name] if name.endswith(":setIamPolicy"):
                self.roles |= {binding["role"] for binding in body["policy"]["bindings"]}
                return body["policy"]
            case "POST", ["projects", _, "setCommonInstanceMetadata"]:
                return done
            case "GET", ["projects", *_, "operations", _]:
                return done
            case "POST", ["projects", _, "zones", zone, "instances"]:
                check(body, {"$ref": "Instance"})
                self.machines[body["name"]] = {**body, "zone": zone, "status": "RUNNING"}
                return done
            case "GET", ["projects", _, "zones", _, "instances"]:
                return {"items": list(self.machines.values())}
            case "DELETE", ["projects", _, "zones", _, "instances", name]:
                del self.machines[name]
                return done
            case _:
                raise AssertionError(f"nobody said what {method} {path} does")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoogleCloud:
    """Stands where httplib2 would open a connection, so that nothing leaves this process."""
    cloud = GoogleCloud()

    def request(self: object, uri: str, method: str = "GET", body: Any = None, **_: object) -> Any:
        sent = json.loads(body) if body else None
        content = json.dumps(cloud.answer(method, urlsplit(uri).path, sent))
        return httplib2.Response({"status": "200"}), content.encode()

    monkeypatch.setattr(httplib2.Http, "request", request)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    return cloud


def test_the_shipped_file_makes_a_head_with_the_journals_disk_and_spot_workers_in_that_network(
    cloud: GoogleCloud, tmp_path: Path
) -> None:
    from ray.autoscaler._private.providers import _NODE_PROVIDERS, _get_node_provider
    from ray.autoscaler._private.util import prepare_config, validate_config

    file = tmp_path / "gcp.yaml"
    file.write_text(FILE.read_text().replace("CHANGE-ME", "acme"))
    load(file)
    config = prepare_config(yaml.safe_load(file.read_text()))
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "nobody"}
    validate_config(config)
    config = _NODE_PROVIDERS["gcp"](config["provider"]).bootstrap_config(config)
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    create_node(config, provider, "head", "head")
    create_node(config, provider, "actor", "worker")

    machines = {machine["labels"]["ray-node-type"]: machine for machine in cloud.machines.values()}
    head, worker = machines["head"], machines["worker"]
    assert "scheduling" not in head
    assert head["disks"][1]["source"].endswith("/disks/turnwise-journal")
    assert head["disks"][1]["autoDelete"] is False
    assert len(worker["disks"]) == 1
    assert worker["scheduling"]["provisioningModel"] == "SPOT"
    for machine in (head, worker):
        (interface,) = machine["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/turnwise")
    assert "serviceAccounts" in head
    assert "serviceAccounts" not in worker
    assert cloud.roles == {
        "roles/storage.objectAdmin",
        "roles/compute.admin",
        "roles/iam.serviceAccountUser",
        "roles/iam.roleViewer",
    }
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert cloud.machines == {}


@pytest.mark.parametrize("within", ["", "disks", "disks.initializeParams", "networkInterfaces", "scheduling"])
def test_the_keys_for_machines_of_google_are_those_of_the_published_api(within: str) -> None:
    fields, known = fields_of({"$ref": "Instance"}), dict(cluster_keys.NODE_CONFIG["gcp"])
    for step in filter(None, within.split(".")):
        fields, known = fields_of(fields[step]), known[step]
    known = {name for name in known if name not in cluster_keys.GCP_FOR_RAY}
    assert known <= set(fields)
    assert set(settable(fields)) - NOT_THE_FILES <= known
