"""Machines of a cluster file, made as Ray makes them."""

import copy
from typing import Any


def create_node(config: dict[str, Any], provider: Any, node_type: str, kind: str) -> None:
    """One machine of a prepared file's node type; its kind is `head` or `worker`."""
    from ray.autoscaler import tags

    node_config = copy.deepcopy(config["available_node_types"][node_type]["node_config"])
    if kind == "head":
        node_config.update(config["head_node"])
    labels = {
        tags.TAG_RAY_NODE_KIND: kind,
        tags.TAG_RAY_USER_NODE_TYPE: node_type,
        tags.TAG_RAY_NODE_NAME: f"ray-turnwise-{kind}",
        tags.TAG_RAY_LAUNCH_CONFIG: "hash",
        tags.TAG_RAY_NODE_STATUS: tags.STATUS_UP_TO_DATE,
    }
    provider.create_node(node_config, labels, count=1)
