"""Engines: what their files say, their command lines, failures, caches and metrics."""
