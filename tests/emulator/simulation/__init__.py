"""Whole experiments in virtual time: emulated engines under the search and scheduling code that real runs use."""
