"""The one kind of error that a person is meant to read."""


class ELNetError(Exception):
    """Something a person can mend: the text says what happened, to what, and what to do."""
