"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def research_data() -> Path:
    """Folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "refusals.jsonl").is_file():
        pytest.skip(f"no real data in {folder}")
    return folder
