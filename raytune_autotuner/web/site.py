"""What every page and every call of the API needs; one per server."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field

from fastapi import Request

from raytune_autotuner.errors import StorageFault
from raytune_autotuner.web.cards import Cards
from raytune_autotuner.web.cluster import Shop
from raytune_autotuner.web.launching import Launcher
from raytune_autotuner.web.library import Library, Unknown
from raytune_autotuner.web.live import Live
from raytune_autotuner.web.reader import Unreadable
from raytune_autotuner.web.security import Sessions
from raytune_autotuner.web.settings import Settings

LATEST = 3
"""Experiments that are read before anybody asks for them."""


@dataclass(frozen=True)
class Site:
    settings: Settings
    library: Library
    cards: Cards
    live: Live
    launcher: Launcher
    shop: Shop
    sessions: Sessions = field(default_factory=Sessions)

    @classmethod
    def of(cls, settings: Settings, launcher: Launcher | None = None) -> Site:
        library = Library(settings.storage)
        cards = Cards(library)
        launcher = launcher or Launcher(settings.storage, os.environ)

        def version() -> str:
            return overall_version(cards, launcher)

        def is_launched(name: str) -> bool:
            launch = launcher.launch(name)
            return launch is not None and launch.alive

        live = Live(library, version, is_launched)
        return cls(settings, library, cards, live, launcher, Shop(settings.kubeconfig))

    def read_latest(self) -> None:
        """Read what is likely to be looked at first, so that nobody waits for it: a large one takes seconds."""
        with suppress(StorageFault, OSError):  # pages say what is wrong
            for card in self.cards.all()[:LATEST]:
                with suppress(StorageFault, OSError, Unknown, Unreadable):
                    _ = self.library.look(card.name).results


def overall_version(cards: Cards, launcher: Launcher) -> str:
    """Another one when the list of experiments would look otherwise."""
    started = " ".join(f"{each.name}:{each.alive}:{len(each.last_words)}" for each in launcher.launches())
    return cards.version_of(cards.all(), started)


def the_site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site
