"""An experiment that is killed again and again, on a real Ray cluster and the emulated OME."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import REFUSED, WINNER
from tests.chaos.kills import Campaign, plan
from tests.chaos.world import World, world
from tests.s3_server import s3_server

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(3600), pytest.mark.long]

SEED = 4
RUNG_S = 1.3
"""So that the experiment outlives thirty kills."""


def test_thirty_kills_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    """Driver, worker, raylet and head, by SIGKILL and SIGTERM; the winner is that of an undisturbed run."""
    with world(tmp_path, rung_s=RUNG_S) as here:
        campaign = Campaign(here, SEED)
        campaign.run(plan(30, SEED))
        assert len(campaign.struck) == 30
        assert campaign.watch.adopted()
        check(here, campaign)


def test_the_same_on_s3(tmp_path: Path) -> None:
    """Fewer kills, one at least of each target by each signal."""
    with s3_server(tmp_path) as server, world(tmp_path, storage=server.uri("lab"), env=server.environment) as here:
        campaign = Campaign(here, SEED)
        campaign.run(plan(8, SEED))
        check(here, campaign)


def check(here: World, campaign: Campaign) -> None:
    watch = campaign.watch
    assert campaign.rival == REFUSED
    assert watch.lost() == []
    assert watch.run_twice() == []
    assert watch.at_once() == []
    assert watch.left() == []
    assert here.answer()["best_result"]["parameters"] == WINNER
    assert watch.uncharged() == []
