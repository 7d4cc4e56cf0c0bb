"""The broker alone: how many messages a second reach a C subscriber that does nothing with them."""

import subprocess

from bench.floors.subscriber import LineCounter, running, session
from bench.flow import Flow, flow
from bench.load import UNBOUNDED, Generator, Order, Sent
from bench.servers import Servers
from bench.workload import Manner


def through_broker(servers: Servers, generator: Generator, manner: Manner, messages: int) -> Flow:
    """Publish so many messages, in step with mosquitto_sub, which writes a dot for each."""
    with (
        session(servers) as made,
        running(subprocess.Popen(made.command("-F", "."), stdout=subprocess.PIPE)) as subscriber,
    ):
        assert subscriber.stdout is not None  # noqa: S101 - it is a pipe
        counter = LineCounter(subscriber.stdout)
        order = Order(roots=[made.root], manner=manner, messages=messages)
        return flow(generator, generator.prepare(order), window=manner.window, done=counter.count)


def into_the_void(generator: Generator, manner: Manner, messages: int) -> Sent:
    """Publish so many messages to which nobody is subscribed, as fast as the broker takes them."""
    generator.prepare(Order(roots=["fm/bench-void"], manner=manner, messages=messages))
    generator.start(allowed=UNBOUNDED)
    return generator.finish()
