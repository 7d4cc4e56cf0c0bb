"""What the API tells of the messages that readings came in."""

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import Time


class UserProperty(BaseModel):
    """A user property of MQTT 5."""

    name: str
    value: str


class BroughtReading(BaseModel):
    """A reading that a message brought, and the charges that were made of it."""

    reading_id: str
    device_id: str
    boot_id: str
    seq: int
    charge_ids: list[str] = Field(description="empty: it is not charged, or not yet")


class StoredMessage(BaseModel):
    """A message as it came: from the broker, by the API or from a file."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "message_id": "1775001600000000-42-0",
                    "batch_no": 42,
                    "topic": "fm/v1/acme/meter-7/usage",
                    "content_type": None,
                    "user_properties": [],
                    "received_at": "2026-04-01T00:00:00Z",
                    "payload_base64": "eyJib290IjoiYjEifQ==",
                    "payload_text": '{"boot":"b1"}',
                    "readings": [
                        {
                            "reading_id": "17-3",
                            "device_id": "meter-7",
                            "boot_id": "b1",
                            "seq": 3,
                            "charge_ids": ["17-3-0"],
                        }
                    ],
                }
            ]
        }
    )

    message_id: str
    batch_no: int = Field(description="in which batch it was made durable")
    topic: str = Field(description="of records that no broker brought: how and for whom they came")
    content_type: str | None
    user_properties: list[UserProperty]
    received_at: Time
    payload_base64: str = Field(description="its very bytes")
    payload_text: str | None = Field(description="the same as text; null where it is not UTF-8")
    readings: list[BroughtReading] = Field(
        description="what was read of it, repeated readings included; see each by its charges, or"
        " under its device's readings"
    )
