"""Environment variables that say which rank this is: read, or refused before anything waits."""

from __future__ import annotations

import os
import socket
import time

import pytest
import torch

from assent import launch
from assent.errors import ConfigError
from assent.launch import RankPlace, join, launched

THERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, RankPlace()),
        ({"LOCAL_RANK": "3", **THERE}, RankPlace()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, RankPlace()),
        ({"RANK": "0"}, RankPlace()),
        ({"WORLD_SIZE": "1"}, RankPlace()),
        ({"RANK": "1", "WORLD_SIZE": "2", **THERE}, RankPlace(1, 2, 1, 2)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **THERE}, RankPlace(5, 8, 1, 4)),
    ],
)
def test_what_launchers_say(variables: dict[str, str], place: RankPlace):
    assert launched(variables) == place


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK is 0 of WORLD_SIZE 2, but there is no MASTER_ADDR and MASTER_PORT."),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "but there is no MASTER_PORT."),
        ({"RANK": "5", "WORLD_SIZE": "2", **THERE}, "RANK is 5 and WORLD_SIZE 2: ranks are counted from 0"),
        ({"RANK": "2", "WORLD_SIZE": "2", **THERE}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "abc", "WORLD_SIZE": "2", **THERE}, "RANK is 'abc'; expected a whole number from 0."),
        ({"RANK": "-1", "WORLD_SIZE": "2", **THERE}, "RANK is '-1'; expected"),
        ({"RANK": "0", "WORLD_SIZE": "0", **THERE}, "WORLD_SIZE is '0'; expected a whole number from 1."),
        ({"RANK": "0", "WORLD_SIZE": "", **THERE}, "WORLD_SIZE is ''; expected"),
        ({"RANK": "\u0663", "WORLD_SIZE": "8", **THERE}, "RANK is '\u0663'; expected"),
        ({"RANK": "0", "WORLD_SIZE": "2", **THERE, "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'; expected"),
        ({"RANK": "0", "WORLD_SIZE": "2", **THERE, "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'; expected"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set."),
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set."),
    ],
)
def test_nonsense_is_one_message(variables: dict[str, str], message: str):
    with pytest.raises(ConfigError) as caught:
        launched(variables)
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "torchrun --nproc-per-node" in str(caught.value)


@pytest.mark.parametrize(("rank", "address"), [(1, "127.0.0.1"), (0, "127.0.0.1"), (1, "no-such-host.invalid")])
def test_ranks_that_do_not_come_are_waited_for_within_bounds(rank: int, address: str, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(launch, "JOIN_LIMIT", 1.0)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=f"Rank {rank} of 2 did not meet the others at {address}:{port}"):
        join(launched(os.environ), torch.device("cpu"))
    assert time.monotonic() - begun < 20
