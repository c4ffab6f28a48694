"""Of bad input: that it is refused, soon, in one line of bounded length that names what is wrong."""

import time

LONGEST = 1000  # characters of a message
SECONDS = 20.0  # for an answer, on a slow machine


def refused(call, *kinds, names=()):
    """The message of the error of one of these kinds that the call ends with; it names all of `names`."""
    began = time.monotonic()
    try:
        result = call()
    except kinds as error:
        message = str(error)
    else:
        raise AssertionError(f"accepted: {result!r:.200}")
    assert len(message.splitlines()) == 1, message[: 2 * LONGEST]
    assert len(message) <= LONGEST, message[: 2 * LONGEST]
    assert not [name for name in names if name not in message], message
    assert time.monotonic() - began < SECONDS
    return message
