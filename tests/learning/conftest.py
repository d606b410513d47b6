"""What the learning tests share: settings of the enumerable world on three seeds, which the cases of a test take in
turns (turns.py)."""

from __future__ import annotations

import pytest

from assent.lab.learning import Setting, build_setting

from .turns import SEEDS


@pytest.fixture(scope="session", params=SEEDS, ids="seed{}".format)
def setting(request, tmp_path_factory) -> Setting:
    return build_setting(tmp_path_factory.mktemp("enumerable"), request.param, prompts=2)
