"""What can go wrong by a user's hand. Every message says what is wrong, where, and what would mend it.

The command line prints the message of an `HskError` and exits with 2; anything else that escapes is a defect of hskstore.
"""


class HskError(Exception):
    """Something the user can mend."""


class OptionError(HskError):
    """An option's value, or two options together, make no sense."""


class DataError(HskError):
    """The data set lacks a file, a column, a label, or has one that cannot be used."""


class ModelError(HskError):
    """A teacher or student cannot be loaded, or cannot do what is asked of it."""


class StoreError(HskError):
    """A store is missing, unsealed, damaged, full, or lacks what is asked of it."""


class EngineError(HskError):
    """Jobs, workers or a cluster failed; what was finished is kept."""


class PlanError(StoreError):
    """The store at this place was planned for something else."""
