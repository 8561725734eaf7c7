"""What acts: domain, encoder, network, exploration, policy file. Pure numpy; no gRPC, no wire types."""

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.domain_file import DomainError, Problem
from turnwise_actor.policy.encoder import Encoder, EncodingError, FieldViolation, RawObservation
from turnwise_actor.policy.explore import decision_seed, draw, greedy, mix, probabilities, softmax
from turnwise_actor.policy.findings import Finding, check_domain, collision_rate
from turnwise_actor.policy.network import Network, check_parameters
from turnwise_actor.policy.policy_file import (
    EXPLORATION_KINDS,
    Exploration,
    ExplorationKind,
    ModeExploration,
    Policy,
    PolicyFileError,
    PolicyVersion,
    initial_policy,
    policy_files,
)
from turnwise_actor.policy.sections import (
    ActionSpec,
    BoolSlot,
    CategorySlot,
    DialogueSpec,
    NumberSlot,
    RewardSpec,
    Slot,
    StateSpec,
    TextSpec,
)
from turnwise_actor.policy.spec import NetworkSpec, default_spec

__all__ = [
    "EXPLORATION_KINDS",
    "ActionSpec",
    "BoolSlot",
    "CategorySlot",
    "DialogueSpec",
    "Domain",
    "DomainError",
    "Encoder",
    "EncodingError",
    "Exploration",
    "ExplorationKind",
    "FieldViolation",
    "Finding",
    "ModeExploration",
    "Network",
    "NetworkSpec",
    "NumberSlot",
    "Policy",
    "PolicyFileError",
    "PolicyVersion",
    "Problem",
    "RawObservation",
    "RewardSpec",
    "Slot",
    "StateSpec",
    "TextSpec",
    "check_domain",
    "check_parameters",
    "collision_rate",
    "decision_seed",
    "default_spec",
    "draw",
    "greedy",
    "initial_policy",
    "mix",
    "policy_files",
    "probabilities",
    "softmax",
]
