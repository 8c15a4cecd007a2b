"""A cluster in a box: the Kubernetes API, what OME and the nodes do, and emulated engines as real processes."""
