"""canal policy selector: the language of policies, offline. No daemon, no root."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    policy = subparsers.add_parser("policy", help="network policy: check it, ask it")
    actions = policy.add_subparsers(metavar="ACTION", required=True)
    summary = "evaluate selectors: JSON lines in, JSON lines out"
    selector = actions.add_parser("selector", help=summary, description=_SELECTOR)
    selector.set_defaults(handler=_selector)


# ---- selectors -------------------------------------------------------------------------------------------------------

_SELECTOR = """Read lines {"selector": TEXT, "labels": [MAP, ...]} from standard input; answer each with
{"canonical": TEXT, "id": TEXT, "match": [BOOL, ...]} or {"error": TEXT}."""


def _selector(arguments: argparse.Namespace) -> int:
    status = 0
    for line in sys.stdin.buffer:
        if not line.strip():
            continue
        try:
            selector, labels = _question(line)
        except ValueError as error:
            answer: dict[str, Any] = {"error": f"not understood: {error}"}
            status = 1
        else:
            answer = _answer(selector, labels)
        print(json.dumps(answer), flush=True)  # whoever asks one by one waits for the answer
    return status


def _question(line: bytes) -> tuple[str, list[dict[str, str]]]:
    question = json.loads(line.decode(errors="replace"))
    if not isinstance(question, dict) or not isinstance(selector := question.get("selector"), str):
        raise ValueError('a line is {"selector": TEXT, "labels": [MAP, ...]}')
    labels = question.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(one, dict) for one in labels):
        raise ValueError("labels are a list of maps")
    return _plain(selector), [{_plain(key): _plain(str(value)) for key, value in one.items()} for one in labels]


def _plain(text: str) -> str:
    """JSON can spell halves of characters; they become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _answer(text: str, labels: list[dict[str, str]]) -> dict[str, Any]:
    from canal_udp.policy.selector import SelectorError, parse

    try:
        selector = parse(text)
    except SelectorError as error:
        return {"error": str(error)}
    return {
        "canonical": selector.canonical,
        "id": selector.id,
        "match": [selector.matches(one) for one in labels],
    }
