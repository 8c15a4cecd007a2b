"""The web front end: pages, an API and pushed updates over experiment folders.

A thin layer: what an experiment is and found is worked out in ``results``, ``overview`` and ``planning``.
"""
