"""Bad input, made of good, and that it is refused, soon, in one line of bounded length that names what is wrong."""

import copy
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


def edited(content, place, value):
    """A copy with another entry at a place: a value, or what a function makes of the old one; `...` removes it."""
    *above, last = (int(key) if key.isdecimal() else key for key in place.split("/"))
    owner = content = copy.deepcopy(content)
    for key in above:
        owner = owner[key]
    if value is ...:
        del owner[last]
    else:
        owner[last] = value(owner[last]) if callable(value) else value
    return content
