"""What `turnwise check` tells about a domain: facts, warnings, and whether it may follow an older one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.encoder import Encoder
from turnwise_actor.policy.sections import CategorySlot, NumberSlot, Slot, TextSpec
from turnwise_actor.policy.spec import default_spec

_SENTENCE_FEATURES = 60
"""Hashed features of a sentence of eight words: 8 words, 7 pairs, about 45 character 3-grams."""


@dataclass(frozen=True)
class Finding:
    """One line of a check. Only an error makes the domain unusable."""

    level: Literal["error", "warning", "fact"]
    field: str
    message: str


def check_domain(domain: Domain, against: Domain | None = None) -> list[Finding]:
    """Findings about a domain, errors first.

    Args:
        domain: already parsed, so it has no errors of its own.
        against: the domain whose checkpoint it is to go on from.
    """
    findings = [*_facts(domain), *_warnings(domain)]
    if against is not None:
        findings += [*_growth_errors(domain, against), *_change_warnings(domain, against)]
    return sorted(findings, key=lambda finding: ("error", "warning", "fact").index(finding.level))


def collision_rate(size: int, features: int) -> float:
    """Expected share of hashed features that share their input with another one of `features`."""
    return 1.0 - (1.0 - 1.0 / size) ** max(features - 1, 0)


def _facts(domain: Domain) -> list[Finding]:
    spec = default_spec(domain)
    layers = " -> ".join(map(str, (spec.inputs, *spec.hidden, spec.actions)))
    facts = [
        Finding("fact", "domain", f"{domain.name} {domain.version}, fingerprint {domain.fingerprint}"),
        Finding("fact", "state", f"{spec.inputs} inputs"),
        Finding("fact", "actions", f"{spec.actions} actions"),
        Finding("fact", "network", f"{layers}: {spec.parameter_count:,} parameters"),
        Finding("fact", "rewards.unrated", f"an unrated turn counts as {domain.unrated_rule!r}"),
    ]
    if domain.state.text is not None:
        facts.append(_collisions(domain.state.text))
    if domain.gamma == 0.0:
        message = "at gamma 0, feedback on the whole dialogue is kept but not learned; feedback on turns is"
        facts.append(Finding("fact", "learning.gamma", message))
    return facts


def _collisions(text: TextSpec) -> Finding:
    rate = collision_rate(text.size, _SENTENCE_FEATURES)
    message = f"{rate:.1%} of the features of an eight-word sentence share an input with another of its own"
    if rate > 0.2:
        return Finding("warning", "state.text.size", f"{message}: raise the size, 1024 gives 5.6%")
    return Finding("fact", "state.text.size", message)


def _warnings(domain: Domain) -> list[Finding]:
    found: list[Finding] = []
    rewards, (lo, hi) = domain.rewards, domain.rewards.range
    if rewards.neutral in (lo, hi):
        message = (
            f"{rewards.neutral:g} is an end of the range {lo:g} to {hi:g}: "
            f"{'a bad' if rewards.neutral == lo else 'a good'} answer looks like an untried one"
        )
        found.append(Finding("warning", "rewards.neutral", message))
    if domain.gamma == 0.0 and rewards.unrated == "neutral":
        message = "at gamma 0 unrated turns pull taught answers back to neutral; skip or auto keeps them"
        found.append(Finding("warning", "rewards.unrated", message))
    if domain.gamma == 0.0 and domain.n_step > 1:
        found.append(Finding("warning", "learning.n_step", "has no effect at gamma 0"))
    if domain.state.history:
        message = (
            "own last actions as inputs slow learning; use them only where the right answer depends on them"
        )
        found.append(Finding("warning", "state.history", message))
    return found


def _growth_errors(new: Domain, old: Domain) -> list[Finding]:
    errors = [
        *_kept("actions", "action", new.action_ids, old.action_ids),
        *_kept("state.slots", "slot", list(new.state.slots), list(old.state.slots)),
    ]
    for name, slot in old.state.slots.items():
        if name in new.state.slots:
            errors += _slot_errors(f"state.slots[{name}]", new.state.slots[name], slot)
    for name in ("features", "history"):
        got, had = getattr(new.state, name), getattr(old.state, name)
        if got < had:
            errors.append(Finding("error", f"state.{name}", f"got {got}; wanted {had} or more, as before"))
    if old.state.text is not None and new.state.text != old.state.text:
        got_text = "no text" if new.state.text is None else f"size {new.state.text.size}"
        message = f"got {got_text}; wanted size {old.state.text.size}, as before: every word hangs on it"
        errors.append(Finding("error", "state.text", message))
    new_spec, old_spec = default_spec(new), default_spec(old)
    for name in ("hidden", "activation", "layer_norm"):
        got, had = getattr(new_spec, name), getattr(old_spec, name)
        if got != had:
            message = f"got {got}; wanted {had}, as before: learned weights fit no other network"
            errors.append(Finding("error", f"learning.{name}", message))
    if new.rewards.range[0] > old.rewards.range[0] or new.rewards.range[1] < old.rewards.range[1]:
        got_range, wanted = list(new.rewards.range), list(old.rewards.range)
        message = f"got {got_range}; wanted {wanted} or wider: ratings already given would lie outside"
        errors.append(Finding("error", "rewards.range", message))
    return errors


def _kept(field: str, kind: str, new: Sequence[str], old: Sequence[str]) -> list[Finding]:
    """Errors for names removed or in another order; new names may stand anywhere."""
    errors = [
        Finding("error", field, f"the {kind} {name!r} was removed; wanted every {kind} of the older domain")
        for name in old
        if name not in new
    ]
    kept = [name for name in new if name in old]
    wanted = [name for name in old if name in new]
    if kept != wanted:
        moved = ", ".join(repr(name) for name, before in zip(kept, wanted, strict=True) if name != before)
        errors.append(Finding("error", field, f"reordered: {moved}; wanted the order {', '.join(wanted)}"))
    return errors


def _slot_errors(field: str, new: Slot, old: Slot) -> list[Finding]:
    if new.type != old.type:
        return [Finding("error", field, f"got type {new.type}; wanted {old.type}, as before")]
    if isinstance(new, CategorySlot) and isinstance(old, CategorySlot):
        return _kept(field, "category", new.categories, old.categories)
    if isinstance(new, NumberSlot) and isinstance(old, NumberSlot) and new != old:
        message = f"got {new.min:g} to {new.max:g}; wanted {old.min:g} to {old.max:g}: scales never change"
        return [Finding("error", field, message)]
    return []


def _change_warnings(new: Domain, old: Domain) -> list[Finding]:
    found: list[Finding] = []
    if new.fingerprint != old.fingerprint and new.version == old.version:
        message = f"still {new.version!r}, though state or actions have changed; give it a new version"
        found.append(Finding("warning", "version", message))
    if new.name != old.name:
        found.append(Finding("warning", "name", f"got {new.name!r}, was {old.name!r}"))
    if new.gamma != old.gamma:
        message = f"got {new.gamma:g}, was {old.gamma:g}: what was learned has to be learned anew"
        found.append(Finding("warning", "learning.gamma", message))
    if (new.rewards.range, new.rewards.neutral) != (old.rewards.range, old.rewards.neutral):
        found.append(
            Finding(
                "warning", "rewards", "the scale has changed: ratings already given now weigh differently"
            )
        )
    added = Encoder(new).size - Encoder(old).size
    if added > 0 or len(new.actions) > len(old.actions):
        message = f"{added} inputs and {len(new.actions) - len(old.actions)} actions more than before"
        found.append(Finding("fact", "growth", message))
    return found
