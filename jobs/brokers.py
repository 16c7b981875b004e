"""The two brokers, as far as rings need them: publish and be told what arrived, and count what waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import kombu
import redis
from amqp import spec
from amqp.basic_message import Message as AmqpMessage
from amqp.exceptions import AMQPError, NotFound
from kombu.exceptions import KombuError

from jobs import log
from jobs.errors import BrokerUnavailable
from jobs.message import Message, amqp_properties, message, redis_envelope
from jobs.model import Ring

ANSWER_S = 3.0  # under a memory or disk alarm a confirm never comes: give up after this
CONNECT_S = 2.0
PRIORITIES = 10
DEAD_QUEUE, DEAD_LETTERS = "dead", 10_000  # signatures that no worker can take, and how many are kept
SEPARATOR = "\x06\x16"  # kombu's, between a queue's name and the step of its priority

logger = log.get(__name__)


def wire_name(queue: str, queue_type: str) -> str:
    """The queue's name on the broker. The type shows in it, so that switching does not collide."""
    return f"{queue}.quorum" if queue_type == "quorum" else queue


def queue_arguments(queue_type: str) -> dict[str, Any]:
    """What a queue is declared with: ten strict priorities, or replicas; what no worker can take goes to the dead."""
    kind = {"x-queue-type": "quorum"} if queue_type == "quorum" else {"x-max-priority": PRIORITIES}
    return {**kind, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": wire_name(DEAD_QUEUE, queue_type)}


def dead_arguments(queue_type: str) -> dict[str, Any]:
    """What the dead-letter queue is declared with: the oldest letters make room, since the record is the truth."""
    kind = {"x-queue-type": "quorum"} if queue_type == "quorum" else {}
    return {**kind, "x-max-length": DEAD_LETTERS}


def redis_priority(priority: int) -> int:
    """Kombu's Redis transport takes 0 first; jobs take 9 first."""
    return PRIORITIES - 1 - priority


def redis_list(queue: str, step: int) -> str:
    """The list in which kombu keeps one step of a queue's priorities."""
    return f"{queue}{SEPARATOR}{step}" if step else queue


def client_name(queue: str) -> str:
    """How a worker's connections to a Redis broker are called, so that one can see who takes from a queue."""
    return f"gristmill-worker:{queue}"


class Broker(Protocol):
    """One connection to the broker, made when it is first needed. Not to be shared by threads or over a fork."""

    def publish(self, rings: Sequence[Ring]) -> list[Ring]:
        """Send them all, then wait for the answers; those that the broker has for certain.

        Raises BrokerUnavailable. A ring that is not in the answer may still have arrived.
        """
        ...

    def depth(self, queue: str) -> int:
        """How many messages wait on a queue; 0 for a queue that does not exist. Raises BrokerUnavailable."""
        ...

    def consumers(self, queue: str) -> int | None:
        """How many workers' connections take from a queue; None: the broker cannot tell. Raises BrokerUnavailable."""
        ...

    def purge(self, queue: str) -> int:
        """Drop every message of a queue; how many there were. Raises BrokerUnavailable."""
        ...

    def close(self) -> None:
        """Give back the connection."""
        ...


def open_broker(url: str, queue_type: str = "classic", *, confirms: bool = True) -> Broker:
    """The broker behind a URL: amqp://, amqps://, redis:// or rediss://. `confirms=False` is for the battery."""
    if url.startswith("redis"):
        return RedisBroker(url, queue_type)
    return AmqpBroker(url, queue_type, confirms)


class AmqpBroker:
    """RabbitMQ, with pipelined confirms: all of a batch is written before the first answer is waited for."""

    def __init__(self, url: str, queue_type: str, confirms: bool = True) -> None:
        self._url, self._type, self._confirms = url, queue_type, confirms
        self._connection: Any = None
        self._channel: Any = None
        self._declared: set[str] = set()
        self._sent = 0  # the delivery tag of the last message on this channel
        self._waiting: dict[int, Message] = {}
        self._answered: list[Ring] = []
        self._returned: set[str] = set()

    def publish(self, rings: Sequence[Ring]) -> list[Ring]:
        with self._answering():
            channel = self._open()
            self._waiting, self._answered, self._returned = {}, [], set()
            for ring in rings:
                queue = self._declare(ring.queue)
                prepared = message(ring)
                self._sent += 1
                self._waiting[self._sent] = prepared
                # The channel's own basic_publish waits for each confirm, and looks at the socket before each message.
                channel.send_method(spec.Basic.Publish, "Bssbb", (0, "", queue, True, False), _Content(prepared))
            if not self._confirms:
                return list(rings)
            until = time.monotonic() + ANSWER_S
            while self._waiting:
                self._connection.drain_events(timeout=max(0.01, until - time.monotonic()))
            return self._answered

    def depth(self, queue: str) -> int:
        found = self._look(queue)
        return int(found.message_count) if found else 0

    def consumers(self, queue: str) -> int | None:
        found = self._look(queue)
        return int(found.consumer_count) if found else 0

    def purge(self, queue: str) -> int:
        if not self.depth(queue):
            return 0
        with self._answering():
            return int(self._open().queue_purge(wire_name(queue, self._type)))

    def _look(self, queue: str) -> Any:
        """What the broker says of a queue; None: there is no such queue."""
        with self._answering():
            channel = self._open()
            try:
                return channel.queue_declare(wire_name(queue, self._type), passive=True)
            except NotFound:
                channel.close()  # which amqp has opened again: a connection has 2,047 at most
                self._channel = None
                return None

    def close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*_AMQP_TROUBLE):
                connection.close()

    def _open(self) -> Any:
        """The channel, in confirm mode. The heartbeat is off: the answer to a publish is awaited for 3 s anyway."""
        if self._connection is None:
            options = {"read_timeout": ANSWER_S, "write_timeout": ANSWER_S, "on_blocked": _on_blocked}
            maker = kombu.Connection(self._url, connect_timeout=CONNECT_S, heartbeat=0, transport_options=options)
            self._connection = maker.transport.establish_connection()
            self._channel = None
        if self._channel is None:
            self._channel = self._connection.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._channel.events["basic_return"].add(self._on_return)
            self._sent, self._waiting = 0, {}
            self._declared.clear()
        return self._channel

    def _declare(self, queue: str) -> str:
        name = wire_name(queue, self._type)
        if name not in self._declared:
            self._channel.queue_declare(name, durable=True, auto_delete=False, arguments=queue_arguments(self._type))
            self._declared.add(name)
        return name

    def _take(self, tag: int, multiple: bool) -> list[Message]:
        tags = [t for t in self._waiting if t <= tag] if multiple else [tag]
        return [self._waiting.pop(t) for t in tags if t in self._waiting]

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._answered += [m.ring for m in self._take(tag, multiple) if m.id not in self._returned]

    def _on_nack(self, tag: int, multiple: bool) -> None:
        refused = self._take(tag, multiple)
        logger.warning("rings_refused", count=len(refused))

    def _on_return(self, error: Exception, exchange: str, queue: str, returned: Any) -> None:
        """No such queue any more (a wiped broker); the confirm follows. Declare it anew next time."""
        self._returned.add(returned.properties.get("correlation_id", ""))
        self._declared.discard(queue)
        logger.warning("ring_returned", queue=queue, error=str(error))

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except BrokerUnavailable:
            self._drop()
            raise
        except _AMQP_TROUBLE as error:
            self._drop()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error

    def _drop(self) -> None:
        """Closing would talk to a broker that does not answer; dropping the socket is enough."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*_AMQP_TROUBLE):
                connection.collect()


def _on_blocked(reason: str) -> None:
    """A memory or disk alarm: no confirm would come."""
    raise BrokerUnavailable(f"The broker has blocked its publishers: {reason}")


# AttributeError: a channel or socket that closed half-way has lost its connection.
_AMQP_TROUBLE = (AMQPError, OSError, KombuError, AttributeError)


class _Content(AmqpMessage):
    """A message whose properties are bytes already."""

    def __init__(self, prepared: Message) -> None:
        super().__init__(prepared.body)
        self._prepared = prepared

    def _serialize_properties(self) -> bytes:
        return amqp_properties(self._prepared)


class RedisBroker:
    """Redis as kombu uses it: a list a queue and priority. The answer to a pipeline is its confirm."""

    def __init__(self, url: str, queue_type: str) -> None:
        self._type = queue_type
        self._client: Any = redis.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=CONNECT_S)

    def publish(self, rings: Sequence[Ring]) -> list[Ring]:
        with self._answering():
            pipe = self._client.pipeline(transaction=False)
            for ring in rings:
                queue, step = wire_name(ring.queue, self._type), redis_priority(ring.priority)
                pipe.lpush(redis_list(queue, step), redis_envelope(message(ring), queue, step))
            pipe.execute()
        return list(rings)

    def depth(self, queue: str) -> int:
        with self._answering():
            pipe = self._client.pipeline(transaction=False)
            for step in range(PRIORITIES):
                pipe.llen(redis_list(wire_name(queue, self._type), step))
            return sum(pipe.execute())

    def consumers(self, queue: str) -> int | None:
        name = client_name(wire_name(queue, self._type))
        with self._answering():
            return len({one["addr"] for one in self._client.client_list() if one.get("name") == name})

    def purge(self, queue: str) -> int:
        with self._answering():
            waiting = self.depth(queue)
            lists = [redis_list(wire_name(queue, self._type), step) for step in range(PRIORITIES)]
            self._client.unlink(*lists)
            return waiting

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
