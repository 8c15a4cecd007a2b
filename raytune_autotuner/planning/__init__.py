"""From a task to what will be tried: checks against the engine, the search space, the plan."""
