"""How payloads of other formats are read, as the API takes and shows it."""

from pydantic import ConfigDict

from metering.wire.mapping import MappingDocument

_MAPPING = {
    "formats": {
        "thingsboard": {
            "modem": {
                "meter": "data",
                "up": "tx_kb",
                "down": "rx_kb",
                "unit": "kB",
                "kind": "total",
                "epoch": {"metric": "bearer"},
            }
        }
    },
    "gateways": {"gw-1": ["meter-*", "tracker-7"]},
    "carrier": {"charged": "device", "senders": ["streamer"], "zones": {"Rate Zone 2": "eu"}},
}


class PayloadMapping(MappingDocument):
    """Which metric of which format is which meter, who may report for whom, and whose count is charged.

    docs/formats.md tells what each field means.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [MappingDocument.model_validate(_MAPPING).model_dump(mode="json")]
        }
    )
