"""A strategy that is being measured against the others (``scripts/bench_search``) and is not offered to users yet."""
