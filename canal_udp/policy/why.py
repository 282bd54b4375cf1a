"""Decisions in words: what was decided, by which rule of which policy, and where that is written."""

from __future__ import annotations

from canal_udp.policy.cursor import NOWHERE, Where
from canal_udp.policy.flow import Decision, Verdict
from canal_udp.policy.model import DIRECTIONS, EGRESS, INGRESS, Direction
from canal_udp.policy.normal import World


class Why:
    """Says what the decisions about one world mean."""

    def __init__(self, world: World) -> None:
        policies = [one for tier in world.policies.values() for one in tier]
        self._where: dict[tuple[Direction, str, int], Where] = {}
        for direction in DIRECTIONS:
            for policy in policies:
                self._where[direction, policy.key, -1] = policy.where
                for rule in policy.rules(direction) or ():
                    self._where[direction, policy.key, rule.index] = rule.where
            for profile in world.profiles.values():
                for rule in profile.rules(direction):
                    self._where[direction, f"Profile:{profile.name}", rule.index] = rule.where

    def where(self, direction: Direction, decision: Decision) -> Where:
        """The place of the rule that decided, or of the policy; NOWHERE if none did."""
        rule = -1 if decision.rule is None else decision.rule
        return self._where.get((direction, decision.policy, rule), NOWHERE)

    def one(self, direction: Direction, decision: Decision) -> str:
        """`ingress denied by NetworkPolicy:x/p rule 2 (file.yaml:9)`."""
        words = [direction, "allowed" if decision.allow else "denied"]
        if decision.policy:
            words += ["by", decision.policy]
            if decision.rule is not None and decision.rule >= 0:
                words += ["rule", str(decision.rule)]
            if (place := str(self.where(direction, decision))) not in ("", "0"):
                words.append(f"({place})")
        return " ".join(words) + (f": {decision.reason}" if decision.reason else "")

    def both(self, verdict: Verdict) -> str:
        """Who denies; if nobody does, how either end came to allow."""
        ends: tuple[tuple[Direction, Decision], ...] = ((EGRESS, verdict.egress), (INGRESS, verdict.ingress))
        told = ends if verdict.allow else tuple(end for end in ends if not end[1].allow)
        return "; ".join(self.one(direction, decision) for direction, decision in told)
