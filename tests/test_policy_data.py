"""Cases that others computed: JSON lines in the folder that CANAL_TEST_DATA names; without it there is nothing to run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from canal_udp.policy.selector import SelectorError, parse

DATA = Path(os.environ.get("CANAL_TEST_DATA") or "/nowhere")


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


class TestSelectors:
    __test__ = (DATA / "selectors.jsonl").exists()

    def test_all_agree(self) -> None:
        for case in cases("selectors.jsonl"):
            try:
                selector = parse(case["selector"])
            except SelectorError:
                assert "error" in case, case
                continue
            assert selector.canonical == case.get("canonical"), case
            assert selector.id == case["id"], case
            assert [selector.matches(labels) for labels in case["labels"]] == case["match"], case
