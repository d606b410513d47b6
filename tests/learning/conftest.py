"""What the learning tests share: settings of the enumerable world on three seeds."""

from __future__ import annotations

import pytest

from assent.lab.learning import Setting, build_setting


@pytest.fixture(scope="session", params=(0, 1, 2), ids="seed{}".format)
def setting(request, tmp_path_factory) -> Setting:
    return build_setting(tmp_path_factory.mktemp("enumerable"), request.param)
