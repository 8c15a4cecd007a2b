"""Find the launch parameters with which an LLM inference engine serves a given load best."""

from __future__ import annotations

__version__ = "0.1.0"
