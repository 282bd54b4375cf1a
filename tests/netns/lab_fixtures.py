"""Labs for tests: each has a name and a folder of its own and is gone at the end, whatever happened."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.labs import Lab, canal

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def labs_root() -> Iterator[Path]:
    """A short path: the daemons' sockets have to fit into 108 bytes."""
    root = Path(tempfile.mkdtemp(prefix="cl", dir="/run"))
    before = os.environ.get("CANAL_LAB_DIR")
    os.environ["CANAL_LAB_DIR"] = str(root / "labs")
    try:
        yield root / "labs"
    finally:
        canal("lab", "down", "--all")
        os.environ.pop("CANAL_LAB_DIR")
        if before is not None:
            os.environ["CANAL_LAB_DIR"] = before
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def new_lab(labs_root: Path) -> Callable[[], Lab]:
    """Make names for labs; what a test leaves up goes at the end of the session."""
    return lambda: Lab(f"t{os.getpid()}x{next(_numbers)}", labs_root)


@pytest.fixture
def lab(new_lab: Callable[[], Lab]) -> Iterator[Lab]:
    """One lab for one test."""
    made = new_lab()
    try:
        yield made
    finally:
        if made.path.exists():
            made.down()
