"""The two ways in which things go wrong for a user: the command was wrong, or the data are."""


class UserError(Exception):
    """The user can mend it: the message is one sentence that names the thing and the remedy.

    Commands print the message without a traceback and exit with status 2.
    """


class DatasetError(Exception):
    """A dataset, episode or frame cannot be used: the message is the reason, in one sentence.

    Jobs over many datasets catch it, quarantine the item, and report the reason.
    """
