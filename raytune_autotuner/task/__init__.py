"""The task file: its text, its models, and everything that can be checked by the file alone."""
