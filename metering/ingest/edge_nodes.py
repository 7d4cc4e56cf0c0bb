"""Sparkplug's edge nodes: what their births announced, what is missing, and whom to ask for a rebirth.

Births are kept in the database before their message is acknowledged: an ingester that starts, or another
one of a shared group, knows their aliases. The sequence is watched by each ingester for itself, and only
one that hears all that a node sends can see a gap in it.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from metering.ingest.admission import Undecoded
from metering.store.connection import Connection
from metering.store.edge_nodes import Birth, births_of, store_births
from metering.usage import Rejection
from metering.wire import sparkplug
from metering.wire.mapping import FormatMapping
from metering.wire.sample import Translated
from metering.wire.sparkplug import Decoded, MessageType, SparkplugTopic

ASKED_APART_MIN = timedelta(seconds=10)
"""A node that was asked for a rebirth is given so long for it."""
_NODES_REMEMBERED_MAX = 10_000

Node = tuple[str, str]
"""The tenant's id and the edge node's."""


class EdgeNodes:
    """What is known of edge nodes, and what of that the database has yet to be told."""

    def __init__(self, *, watch_sequence: bool) -> None:
        self._watch_sequence = watch_sequence
        self._births: dict[Node, dict[str, Birth]] = {}
        self._last_seq: dict[Node, int] = {}
        self._changed: dict[tuple[Node, str], Birth] = {}
        self._asked: dict[Node, datetime] = {}
        self._due: set[Node] = set()

    async def load(
        self, connection: Connection, nodes: Iterable[Node], *, all_is_heard: bool
    ) -> None:
        """Ask the database for nodes that are not known; again unless this ingester hears all births."""
        if len(self._births) > _NODES_REMEMBERED_MAX or not all_is_heard:
            self._births.clear()
        if len(self._last_seq) > _NODES_REMEMBERED_MAX:
            self._last_seq.clear()
            self._asked.clear()
        missing = sorted(set(nodes).difference(self._births))
        for node in missing:
            self._births[node] = {}
        if missing:
            for birth in await births_of(connection, missing):
                self._births[birth.tenant_id, birth.edge_node][birth.device] = birth

    async def store(self, connection: Connection, *, now: datetime) -> None:
        """Keep what births and deaths changed."""
        if self._changed:
            await store_births(connection, self._changed.values(), now=now)
            self._changed.clear()

    def rebirths_due(self, now: datetime) -> list[Node]:
        """Return the nodes to be asked for a rebirth now, each once until it had time for it."""
        due = [
            node
            for node in sorted(self._due)
            if node not in self._asked or now - self._asked[node] >= ASKED_APART_MIN
        ]
        self._due.clear()
        self._asked.update(dict.fromkeys(due, now))
        return due

    def take(
        self, undecoded: Undecoded, mapping: FormatMapping, *, readings_max: int
    ) -> Translated | Rejection:
        """Take a message in its turn: note births, deaths and gaps, and return what was used."""
        topic = undecoded.format
        assert isinstance(topic, SparkplugTopic)  # noqa: S101 - the caller's case
        decoded = sparkplug.decode(undecoded.payload, readings_max=readings_max)
        if isinstance(decoded, Rejection):
            return decoded
        node = (topic.group, topic.edge_node)
        births = self._births.setdefault(node, {})
        match topic.type:
            case MessageType.NBIRTH:
                for device in [each for each in births if each]:  # to be born again, too (§6.4.7)
                    self._keep(node, births[device]._replace(is_alive=False, aliases={}))
                self._last_seq[node] = decoded.seq or 0
                self._asked.pop(node, None)
                self._born(node, topic, decoded)
            case MessageType.DBIRTH:
                self._watch(node, decoded)
                self._born(node, topic, decoded)
            case MessageType.NDEATH:
                self._node_died(node, decoded)
                return Translated()
            case MessageType.DDEATH:
                self._watch(node, decoded)
                self._died(node, topic.device)
                return Translated()
            case _:
                self._watch(node, decoded)
        born = births.get("")
        of_sender = births.get(topic.device)
        if born is None or not born.is_alive or of_sender is None or not of_sender.is_alive:
            self._due.add(node)
        # Aliases are unique in a node with all its devices (§6.4.5), as of its last birth.
        aliases = {} if born is None else dict(born.aliases)
        aliases |= {} if of_sender is None else of_sender.aliases
        outcome, unknown = sparkplug.readings_of(
            decoded, aliases, mapping, device=topic.device or topic.edge_node
        )
        if unknown:
            self._due.add(node)
        return outcome

    def _born(self, node: Node, topic: SparkplugTopic, decoded: Decoded) -> None:
        birth = Birth(*node, topic.device, decoded.bd_seq(), decoded.aliases(), is_alive=True)
        self._keep(node, birth)

    def _node_died(self, node: Node, decoded: Decoded) -> None:
        """Note a node's death, unless it is that of an earlier birth, which comes late."""
        born = self._births[node].get("")
        if born is None or decoded.bd_seq() not in (None, born.bd_seq):
            return
        for device in list(self._births[node]):
            self._died(node, device)

    def _died(self, node: Node, device: str) -> None:
        known = self._births[node].get(device)
        if known is not None:
            self._keep(node, known._replace(is_alive=False))

    def _keep(self, node: Node, birth: Birth) -> None:
        self._births[node][birth.device] = birth
        self._changed[node, birth.device] = birth

    def _watch(self, node: Node, decoded: Decoded) -> None:
        """See whether something is missing between this message and the one before."""
        if decoded.seq is None or not self._watch_sequence:
            return
        before = self._last_seq.get(node)
        self._last_seq[node] = decoded.seq
        if before is not None and decoded.seq != (before + 1) % sparkplug.SEQ_COUNT:
            self._due.add(node)
