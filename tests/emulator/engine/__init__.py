"""An emulated inference engine: the flags, messages and HTTP interface of the real one, timed by a model of it."""
