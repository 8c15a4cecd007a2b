"""Kills at random moments: an experiment on a real Ray cluster and the emulated OME, and what must hold at its end."""
