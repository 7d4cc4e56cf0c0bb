"""Reads the API all the time: what it once showed as used must never be taken back."""

import threading
import time
from dataclasses import dataclass, field

import httpx

PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 120.0


@dataclass(slots=True)
class Onlooker:
    """A thread that asks for a pool's balance and its fleet's bill.

    It accepts an answer, 503, and nobody listening; everything else is a complaint, and so is use
    that shrinks: charges would have been shown that were not durable.
    """

    url: str
    key: str
    fleet_id: str
    complaints: list[str] = field(default_factory=list)
    answers: int = 0
    unavailable: int = 0
    slowest_seconds: float = 0.0
    _used: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._look, name="onlooker")
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS) as client:
            while not self._stop.wait(PAUSE_SECONDS):
                for what in ("balance", "bill"):
                    self._ask(client, what)

    def _ask(self, client: httpx.Client, what: str) -> None:
        began = time.monotonic()
        try:
            response = client.get(f"/v1/fleets/{self.fleet_id}/{what}")
        except httpx.TimeoutException:
            self.complaints.append(f"no answer within {PATIENCE_SECONDS} s")
            return
        except httpx.TransportError:  # nobody listens, or whoever did was killed
            return
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            self.unavailable += 1
        elif response.status_code == httpx.codes.OK:
            self.answers += 1
            if what == "balance":
                self._compare(response.json())
        else:
            self.complaints.append(f"{response.status_code}: {response.text[:300]}")

    def _compare(self, balance: dict[str, list[dict[str, object]]]) -> None:
        for pool in balance["pools"]:
            lots = pool["lots"]
            assert isinstance(lots, list)
            for lot in lots:
                key = (str(pool["meter"]), str(pool["name"]), str(lot["begins_at"]))
                before, used = self._used.get(key, 0), int(lot["used"])
                if used < before:
                    self.complaints.append(f"{key}: {before} were shown as used, then {used}")
                self._used[key] = used
