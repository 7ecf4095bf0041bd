"""The exceptions that mean "the person at the keyboard can fix this"."""


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2.

    The message says what was expected, what came, and what to do.
    """


class UnsupportedNetwork(UserError):
    """A method cannot handle this network at all; the message names the layer. Another method may."""
