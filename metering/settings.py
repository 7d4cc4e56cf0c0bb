"""The only reader of the environment: every setting, its unit and its default.

Each field is read from `FLEETMETER_<NAME>`, or from a `.env` file in the working directory.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one process. Durations end in their unit; sizes are in octets."""

    model_config = SettingsConfigDict(
        env_prefix="FLEETMETER_", env_file=".env", env_file_encoding="utf-8", extra="ignore"
    )

    # Where things are
    database_url: SecretStr | None = Field(
        None, description="libpq URL of a PostgreSQL that has TimescaleDB; unset: the stack's own"
    )
    api_database_url: SecretStr | None = Field(
        None,
        description="the same, as the role that row-level security holds for; unset: follows from it",
    )
    database_answer_seconds_max: float = Field(
        30.0, gt=0, description="a statement without an answer for so long ends its connection"
    )
    broker_url: SecretStr | None = Field(
        None,
        description="mqtt[s]://[user:password@]host:port of the broker; unset: the stack's own",
    )
    broker_ca_file: Path | None = Field(
        None, description="authorities that a broker over TLS is trusted by; unset: the machine's"
    )
    broker_certificate_file: Path | None = Field(
        None, description="a device's certificate, by which it connects to the broker"
    )
    broker_key_file: Path | None = Field(None, description="the key of that certificate")
    device_listen_host: str = Field(
        "127.0.0.1", description="address on which the stack's broker listens for devices, over TLS"
    )
    device_host_name: str = Field(
        "localhost", description="name under which devices reach the stack's broker"
    )
    authority_dir: Path | None = Field(
        None, description="folder of the authority that signs certificates; unset: the stack's own"
    )
    revocation_list_url: str | None = Field(
        None,
        description="where brokers find the list of revoked certificates, said in certificates",
        pattern=r"^https?://[!-~]+$",
    )
    broker_rights: Literal["dynamic-security", "database"] = Field(
        "dynamic-security",
        description="who tells the broker what devices may do: its plugin, or views of the database",
    )
    data_dir: Path = Field(
        Path("var"), description="folder for the stack's data, logs, keys and ledgers"
    )
    cache_dir: Path | None = Field(
        None, description="folder for fetched packages; unset: the user's cache folder"
    )

    # The broker connection
    mqtt_version: Literal["5", "3.1.1"] = Field(
        "5",
        description="of ingester, control, simulator and agent; over 3.1.1 the broker sets the window",
    )
    topic_root: str = Field("fm/v1", description="first levels of every topic", pattern=r"^[^+#]+$")

    # Ingest
    ingest_client_id: str = Field(
        "fleetmeter-ingest", description="names the persistent session; one a process"
    )
    ingest_shared_group: str | None = Field(
        None,
        description="ingesters with one group, and each its own client id, share what comes; unset: alone",
        pattern=r"^[^/+#]+$",
    )
    ingest_sparkplug: bool = Field(
        default=False, description="also take what Sparkplug B edge nodes publish under spBv1.0"
    )
    ingest_window: int = Field(
        16_000, ge=1, le=65535, description="messages in flight between broker and commit"
    )
    ingest_batch_readings_max: int = Field(5000, ge=1, description="a batch is due at this size")
    ingest_batch_age_ms: int = Field(
        5, ge=0, description="a batch is due when its first message is so old"
    )
    ingest_buffer_octets_max: int = Field(
        64 * 1024 * 1024, ge=1024, description="payloads held before reading from the broker pauses"
    )
    ingest_payload_octets_max: int = Field(512 * 1024, ge=256, description="largest payload taken")
    ingest_readings_per_message_max: int = Field(5000, ge=1, description="most readings a message")
    messages_kept_days: int = Field(
        400, ge=0, description="messages are kept as they came for so many days; 0: none are"
    )
    ingest_ack_interval_ms: int = Field(
        100, ge=0, description="end-to-end acknowledgements are gathered this long"
    )
    clock_ahead_seconds_max: int = Field(
        600, ge=0, description="a reading measured further in the future is rejected"
    )
    clock_behind_days_max: int = Field(
        400, ge=1, description="a reading measured further in the past is rejected"
    )

    # Floods: what one device may send, on average over the window
    device_messages_per_second_max: float = Field(
        2000.0,
        gt=0,
        description="messages of readings; a device that sends more is held for a while",
    )
    device_octets_per_second_max: float = Field(
        8_000_000.0, gt=0, description="octets of messages; a device that sends more is held, too"
    )
    device_requests_per_second_max: float = Field(
        20.0, gt=0, description="requests for quota and answers to commands; the same"
    )
    flood_window_seconds: float = Field(
        10.0, gt=0, description="the time over which what a device sends is averaged"
    )
    flood_hold_seconds: float = Field(
        60.0, gt=0, description="for so long a device that sends too much is kept away"
    )
    flood_backlog_seconds_max: float = Field(
        600.0,
        ge=0,
        description="what comes after an outage of ours may have been sent in at most so long",
    )

    # Charging
    charging_poll_seconds: float = Field(
        1.0, gt=0, description="the worker looks for work at least this often without a NOTIFY"
    )
    charging_batch_readings_max: int = Field(5000, ge=1, description="readings a transaction takes")
    charging_lease_seconds: float = Field(
        3.0, ge=0.5, description="a worker not heard of for so long is dead; others take its shards"
    )
    charging_silence_seconds_max: float = Field(
        10.0, ge=1, description="the database ends a worker's transaction that is idle for so long"
    )

    closing_grace_hours: float = Field(
        72.0, ge=0, description="a bill cycle closes this long after its end; usage then is late"
    )
    silent_after_hours: float = Field(
        48.0,
        gt=0,
        description="a device unheard of, or a gap open, for longer holds no watermark back",
    )

    billing_poll_seconds: float = Field(
        60.0, gt=0, description="the bill run looks for drafts that may be final this often"
    )

    # Jobs
    job_poll_seconds: float = Field(
        1.0, gt=0, description="the bill run looks for jobs that the API queued this often"
    )
    job_lease_seconds: float = Field(
        60.0,
        ge=1,
        description="a job whose process is not heard of for so long is taken by another",
    )
    job_kept_days: float = Field(
        7.0, gt=0, description="a job that ended, and the file that it made, are kept so long"
    )
    job_export_charges_max: int = Field(
        10_000_000, ge=1, description="most charges that one export may hold"
    )

    # Tax
    tax_service_url: str | None = Field(
        None, description="a service that finds the tax of tenants without tax rules; unset: none"
    )
    tax_service_token: SecretStr | None = Field(
        None, description="bearer token that the tax service wants; unset: none"
    )
    tax_service_secrets: dict[str, SecretStr] | None = Field(
        None,
        description='tokens of tenants\' own tax services, by tenant and name: `{"acme/main": "…"}`',
    )
    tax_service_retry_seconds: float = Field(
        60.0,
        gt=0,
        description="a tax service that gave no answer is not asked again for so long",
    )
    tax_service_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=300,
        description="a bill whose tax service has not answered by then is a draft",
    )

    # Payments
    payment_provider_url: str = Field(
        "https://api.stripe.com", description="where the payment provider's API is"
    )
    payment_provider_key: SecretStr | None = Field(
        None,
        description="secret key of the payment provider's API;"
        " unset: nothing is asked of it, refunds by it fail",
    )
    payment_webhook_secret: SecretStr | None = Field(
        None, description="by which the payment provider signs its events; unset: none is taken"
    )
    payment_timeout_seconds: float = Field(
        30.0, gt=0, description="a payment provider that has not answered by then is asked again"
    )
    payment_retry_seconds: float = Field(
        30.0, gt=0, description="it is asked again after this, then twice that, up to an hour"
    )

    # Control
    control_client_id: str = Field(
        "fleetmeter-control", description="names the control process's session; one a process"
    )
    control_poll_seconds: float = Field(
        1.0, gt=0, description="the outbox is looked at at least this often without a NOTIFY"
    )
    control_resend_seconds: float = Field(
        5.0, gt=0, description="an unanswered command is sent again after this, then twice that"
    )
    control_resend_seconds_max: float = Field(
        60.0, gt=0, description="longest wait before an unanswered command is sent again"
    )
    webhook_timeout_seconds: float = Field(
        10.0, gt=0, description="a webhook that has not answered by then has failed"
    )
    webhook_retry_seconds: float = Field(
        5.0, gt=0, description="a failed webhook is tried again after this, then twice that"
    )
    webhook_retry_seconds_max: float = Field(
        43_200.0, gt=0, description="longest wait before a failed webhook is tried again"
    )
    webhook_attempts_max: int = Field(
        18, ge=1, description="after so many attempts a webhook has failed for good"
    )
    webhook_failing_days_max: float = Field(
        5.0, gt=0, description="an endpoint at which nothing arrived for so long is disabled"
    )
    webhook_log_days: float = Field(
        30.0, gt=0, description="deliveries that ended, and their attempts, are kept so long"
    )
    webhook_private_addresses: bool = Field(
        default=False, description="whether webhooks may call loopback and private addresses"
    )

    # Quota ahead of use
    quota_validity_seconds: int = Field(
        1800, ge=1, description="a grant holds so long, unless its cycle or bucket ends before"
    )
    quota_report_seconds: int = Field(
        900, ge=0, description="longest time from a use to its charge, for the bound of overshoot"
    )
    quota_headroom_percent: int = Field(
        150, ge=1, description="what is granted, of what a device is expected to use meanwhile"
    )
    quota_pool_share_percent: int = Field(
        10, ge=1, le=100, description="most of what is left of a pool that one grant takes"
    )
    quota_octets_min: int = Field(64 * 1024, ge=1, description="least of a grant of octets")
    quota_octets_max: int = Field(10**9, ge=1, description="most of a grant of octets")
    quota_seconds_min: int = Field(60, ge=1, description="least of a grant of seconds")
    quota_seconds_max: int = Field(7200, ge=1, description="most of a grant of seconds")
    quota_messages_min: int = Field(5, ge=1, description="least of a grant of messages")
    quota_messages_max: int = Field(1000, ge=1, description="most of a grant of messages")
    quota_final_action: Literal["terminate", "restrict", "overage"] = Field(
        "overage", description="what devices do when their last grant is used up"
    )

    # Who is let in
    oidc_issuer: str | None = Field(
        None, description="OpenID Connect issuer whose tokens the API takes; unset: API keys alone"
    )
    oidc_audience: str = Field(
        "fleetmeter", description="the audience that a token has to be made for"
    )

    secrets_key: SecretStr | None = Field(
        None,
        description="key that encrypts secrets of webhooks in the database; former ones after commas",
    )

    # Streams
    stream_heartbeat_seconds: float = Field(
        15.0,
        gt=0,
        description="a stream that tells nothing says so often that it lives; access is checked as often",
    )
    stream_send_seconds_max: float = Field(
        30.0, gt=0, description="a reader that does not take what it is sent for so long is dropped"
    )
    streams_per_key_max: int = Field(
        20, ge=1, description="most streams that one key or user has open at one API process"
    )
    stream_kept_hours: float = Field(
        72.0, gt=0, description="what was told in streams is kept so long, for who returns"
    )

    api_requests_a_minute_of_key: int = Field(
        6000, ge=0, description="requests that a key or user may make in a minute; 0: any number"
    )
    api_requests_a_minute_of_tenant: int = Field(
        60_000, ge=0, description="the same of a tenant, all its keys and users together"
    )

    # Listening
    api_host: str = Field("127.0.0.1", description="address on which the API listens")
    api_port: int = Field(8000, ge=0, le=65535, description="port of the API; 0: a free one")
    api_body_octets_max: int = Field(
        16 * 1024 * 1024, ge=1024, description="largest body of a request that the API takes"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Prometheus port of ingester, worker and control; 0: none"
    )
