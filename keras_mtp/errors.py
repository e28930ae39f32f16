"""The one exception for mistakes a user can mend.

Raised where a value enters, with a message that says what was expected, what came and what to do. The command line
shows it as a single line and exits with code 2; in Python it is a `ValueError` like Keras' own.
"""


class UserError(ValueError):
    """A mistake in what the user gave: a recipe, a file, an option, an argument."""
