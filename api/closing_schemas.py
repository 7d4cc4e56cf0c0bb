"""What the API answers of a fleet's watermark: up to when its usage is believed complete."""

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import Fleet, Time


class DeviceProgress(BaseModel):
    """Up to when the usage of an active device has arrived."""

    device_id: str
    complete_to: Time = Field(
        description="all that it measured up to then has arrived; no number before it is missing"
    )
    heard_at: Time | None = Field(description="when something new of it came last; null: never")
    has_gap: bool = Field(description="readings are missing that may still come")


class Watermark(BaseModel):
    """Up to when a fleet's usage is believed complete, and which devices decide that."""

    active_devices: int
    silent_devices: int = Field(
        description="those of them of which nothing new came for long; they hold nothing back"
    )
    held_back_by: list[DeviceProgress] = Field(
        description="the 20 that lag most, first the one that holds the watermark back"
    )
    silent: list[DeviceProgress] = Field(description="the 20 that are silent for longest")
    queued_from: Time | None = Field(
        description="since when usage waits for charging, which holds it back too; null: none waits"
    )


class FleetDetail(Fleet):
    """One fleet, and up to when its usage is believed complete."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fleet_id": "north",
                    "name": "North",
                    "currency": "EUR",
                    "time_zone": "Europe/Berlin",
                    "cycle": "month",
                    "anchor_day": 1,
                    "anchor_month": None,
                    "time_zone_from": None,
                    "labels": {"customer": "c-17"},
                    "devices": 100,
                    "created_at": "2026-01-01T00:00:00Z",
                    "usage_complete_to": "2026-04-15T11:40:00Z",
                    "watermark": {
                        "active_devices": 98,
                        "silent_devices": 1,
                        "held_back_by": [
                            {
                                "device_id": "meter-7",
                                "complete_to": "2026-04-15T11:40:00Z",
                                "heard_at": "2026-04-15T11:59:58Z",
                                "has_gap": True,
                            }
                        ],
                        "silent": [
                            {
                                "device_id": "meter-9",
                                "complete_to": "2026-04-02T08:00:00Z",
                                "heard_at": "2026-04-02T08:00:01Z",
                                "has_gap": False,
                            }
                        ],
                        "queued_from": None,
                    },
                }
            ]
        }
    )

    usage_complete_to: Time | None = Field(
        description="all usage up to then is believed to be charged; null: every device is silent"
    )
    watermark: Watermark
