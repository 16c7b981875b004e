"""Kombu's Redis transport with one mend: a worker whose acknowledgement fails does not wait for ever.

Kombu counts a message as under way until Redis has confirmed its acknowledgement. With a prefetch of one, a worker that
finished a part while its broker was away therefore never asked for another: it did not even see that its connection was
gone. Here the message stops being counted whatever Redis says; should it come again, there is nothing to claim.
"""

from __future__ import annotations

from typing import Any

from kombu import transport
from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """What is under way, for prefetch."""

    def ack(self, delivery_tag: Any) -> None:
        """Forget it here, also when Redis does not answer."""
        try:
            super().ack(delivery_tag)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """As `ack`."""
        try:
            super().reject(delivery_tag, requeue)
        except BaseException:
            virtual.QoS.ack(self, delivery_tag)
            raise


class Channel(redis.Channel):
    """With that count."""

    QoS = QoS


class Transport(redis.Transport):
    """With that channel."""

    Channel = Channel


def install() -> None:
    """From now on redis:// and rediss:// mean this one in this process."""
    for scheme in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        # Kombu remembers what a scheme meant when it was first used.
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined]
