"""`Location` of what a request made: where it is shown, beside each 201 and its repetitions."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCATIONS: Mapping[str, str] = {
    "post_api_key": "/v1/api-keys/{api_key_no}",
    "rotate_api_key": "/v1/api-keys/{api_key_no}",
    "post_user": "/v1/users/{user_no}",
    "post_tenant": "/v1/tenants/{tenant_id}",
    "post_fleet": "/v1/fleets/{fleet_id}",
    "post_device": "/v1/devices/{device_id}",
    "post_devices": "/v1/devices",
    "top_up_fleet": "/v1/buckets/{bucket_no}",
    "top_up_device": "/v1/buckets/{bucket_no}",
    "transfer_balance": "/v1/buckets/{bucket_no}",
    "adjust_balance": "/v1/buckets/{bucket_no}",
    "post_finalisation": "/v1/bills/{bill_no}",
    "post_void": "/v1/bills/{note_no}",
    "post_rebilling": "/v1/bills/{bill_no}",
    "post_bill_settlement": "/v1/bills/{bill_no}",
    "post_note": "/v1/bills/{bill_no}",
    "post_bill_adjustment": "/v1/bill-adjustments/{adjustment_no}",
    "post_fleet_adjustment": "/v1/bill-adjustments/{adjustment_no}",
    "post_dispute": "/v1/disputes/{dispute_no}",
    "post_resolution": "/v1/disputes/{dispute_no}",
    "post_rerating": "/v1/corrections",
    "post_payment": "/v1/payments/{payment_no}",
    "post_reversal": "/v1/payments/{payment_no}",
    "post_allocation": "/v1/fleets/{fleet_id}/account",
    "post_refund": "/v1/fleets/{fleet_id}/refunds",
    "post_payment_request": "/v1/fleets/{fleet_id}/payment-requests",
    "post_credential": "/v1/devices/{device_id}/credential",
    "rotate_credential": "/v1/devices/{device_id}/credential",
    "post_reservation": "/v1/devices/{device_id}/reservations/{request_id}",
    "post_subscription": "/v1/corrections/{correction_no}/differences",
    "post_plan_change": "/v1/corrections/{correction_no}/differences",
    "post_subscription_end": "/v1/corrections/{correction_no}/differences",
    "post_state_change": "/v1/corrections/{correction_no}/differences",
    "post_fleet_move": "/v1/corrections/{correction_no}/differences",
    "post_sim_swap": "/v1/corrections/{correction_no}/differences",
    "post_plan": "/v1/plans/{plan_id}",
    "post_plan_version": "/v1/plans/{plan_id}",
    "create_fleet_threshold": "/v1/thresholds/{threshold_no}",
    "create_device_threshold": "/v1/thresholds/{threshold_no}",
    "post_command": "/v1/commands/{command_id}",
    "post_webhook_endpoint": "/v1/webhook-endpoints/{endpoint_id}",
    "post_webhook_secret": "/v1/webhook-endpoints/{endpoint_id}",
}
"""Where what an operation made is shown, by the fields of its answer and of its path."""

_SUCCESS = range(200, 300)
_MAKING = frozenset({"POST", "PUT"})


def describe_location(operation: dict[str, Any]) -> None:
    """Let the OpenAPI document say that a `Location` is told."""
    template = LOCATIONS.get(operation["operationId"])
    if template is None:
        return
    for status in ("200", "201"):
        answer = operation["responses"].get(status)
        if answer is not None:
            answer.setdefault("headers", {})["Location"] = {
                "description": "where it is shown",
                "schema": {"type": "string", "examples": [template]},
            }


class TellLocations:
    """ASGI middleware: whose answer is one JSON object that says what was made gets its `Location`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the head of such an answer until its body is there."""
        if scope["type"] != "http" or scope["method"] not in _MAKING:
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = getattr(scope.get("route"), "name", None)
                if message["status"] in _SUCCESS and name in LOCATIONS:
                    held.append(message)
                    return
            for start in held:
                made = {**scope["path_params"], **json.loads(message["body"])}
                parts = {name: quote(str(part), safe="") for name, part in made.items()}
                template = LOCATIONS[scope["route"].name]
                MutableHeaders(scope=start)["Location"] = template.format_map(parts)
                await send(start)
            held.clear()
            await send(message)

        await self._app(scope, receive, told)
