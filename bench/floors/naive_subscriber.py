"""A stock Python subscriber: what arrives gathers in a list, and a thread copies the list when it can.

Its arguments are the broker's URL, client id, topic filter and database URL. It writes a line for each
message that is stored.
"""

import sys
import threading

import paho.mqtt.client as paho
import psycopg
from paho.mqtt.enums import CallbackAPIVersion

from metering.broker_address import parse_broker_url

_WAIT_SECONDS = 0.02


def main() -> None:
    """Store what is published until killed."""
    broker_url, client_id, topic_filter, url = sys.argv[1:]
    broker = parse_broker_url(broker_url)
    arrived: list[tuple[str, str]] = []
    lock = threading.Lock()

    def take(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with lock:
            arrived.append((message.topic, message.payload.decode()))

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
    client.on_message = take
    client.on_connect = lambda made, *_: made.subscribe(topic_filter, qos=1)
    client.username_pw_set(broker.username, broker.password)
    client.connect(broker.host, broker.port)
    client.loop_start()
    with psycopg.connect(url) as connection:
        while True:
            with lock:
                lines, arrived[:] = list(arrived), []
            if not lines:
                threading.Event().wait(_WAIT_SECONDS)
                continue
            with connection.cursor().copy("COPY line (topic, payload) FROM STDIN") as copy:
                for line in lines:
                    copy.write_row(line)
            connection.commit()
            sys.stdout.write("\n" * len(lines))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
