"""Narrowing: when the database refuses a batch, halving it until the culprit stands alone. Pure."""

from collections.abc import Sequence

from metering.ingest.admission import Message, refused_by_storage


def narrowed(messages: Sequence[Message], problem: str) -> list[list[Message]] | None:
    """Return smaller batches that together are a refused one; None when nothing is left to divide.

    Messages are parted first, then a message's readings. A reading that is refused alone becomes a
    rejection of its message: it does not count as arrived, so its device keeps it.
    """
    if len(messages) > 1:
        middle = len(messages) // 2
        return [list(messages[:middle]), list(messages[middle:])]
    (message,) = messages
    if not message.readings:
        return None
    if len(message.readings) == 1:
        refused = refused_by_storage(message, problem)
        rejections = [*message.rejections, refused]
        return [[message._replace(readings=[], identities=[], rejections=rejections)]]
    middle = len(message.readings) // 2
    first, second = message.identities[:middle], message.identities[middle:]
    return [
        [message._replace(readings=message.readings[:middle], identities=first)],
        [message._replace(readings=message.readings[middle:], identities=second, rejections=[])],
    ]
