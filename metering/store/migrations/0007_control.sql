-- What leaves the platform: commands to devices, events, and the webhooks that tell them.

CREATE TABLE command (
    command_no      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command_id      uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT command_id_is_unique UNIQUE,
    tenant_no       integer NOT NULL REFERENCES tenant,
    device_no       bigint NOT NULL REFERENCES device,
    kind            text NOT NULL CONSTRAINT command_kind_is_known
                    CHECK (kind IN ('balance', 'throttle', 'suspend', 'resume', 'grant')),
    payload         jsonb NOT NULL,
    cause           text NOT NULL,
    published_at    timestamptz,
    created_at      timestamptz NOT NULL,
    expires_at      timestamptz,
    state           text NOT NULL DEFAULT 'queued' CONSTRAINT command_state_is_known
                    CHECK (state IN ('queued', 'sent', 'done', 'refused', 'superseded', 'expired')),
    attempts        integer NOT NULL DEFAULT 0,
    due_at          timestamptz,
    sent_at         timestamptz,
    acknowledged_at timestamptz,
    detail          text,
    CONSTRAINT a_command_is_caused_once UNIQUE (device_no, kind, cause),
    CONSTRAINT an_open_command_is_due CHECK ((state IN ('queued', 'sent')) = (due_at IS NOT NULL)),
    CONSTRAINT an_answered_command_says_when
        CHECK ((state IN ('done', 'refused')) = (acknowledged_at IS NOT NULL))
) WITH (fillfactor = 70);
COMMENT ON COLUMN command.command_no IS 'Told to the device as `number`: of two commands the higher is the later.';
COMMENT ON COLUMN command.state IS 'queued: the broker has not taken it; sent: it has, and the device has not answered.';
COMMENT ON COLUMN command.due_at IS 'When it is next published; moved on before, so that two processes never publish at once.';
COMMENT ON COLUMN command.published_at IS 'When the message that caused it was sent; NULL: none did.';
COMMENT ON COLUMN command.sent_at IS 'When the broker first took it.';
CREATE INDEX command_that_is_due ON command (due_at, command_no) WHERE due_at IS NOT NULL;
CREATE INDEX command_that_expires ON command (expires_at) WHERE due_at IS NOT NULL;
CREATE INDEX command_that_is_open ON command (device_no, command_no) WHERE due_at IS NOT NULL;
CREATE INDEX command_by_tenant ON command (tenant_no, command_no DESC);
CREATE INDEX command_by_device ON command (device_no, command_no DESC);

CREATE TABLE event (
    event_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id   uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT event_id_is_unique UNIQUE,
    tenant_no  integer NOT NULL REFERENCES tenant,
    fleet_no   integer NOT NULL REFERENCES fleet,
    device_no  bigint REFERENCES device,
    kind       text NOT NULL,
    payload    jsonb NOT NULL,
    cause      text NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT an_event_is_recorded_once UNIQUE (tenant_no, kind, cause)
);
CREATE INDEX event_by_tenant ON event (tenant_no, event_no DESC);
CREATE INDEX event_by_fleet ON event (fleet_no, event_no DESC);
CREATE INDEX event_by_device ON event (device_no, event_no DESC) WHERE device_no IS NOT NULL;

CREATE TABLE webhook_endpoint (
    endpoint_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT webhook_endpoint_id_is_unique UNIQUE,
    tenant_no   integer NOT NULL REFERENCES tenant,
    cause       text NOT NULL,
    url         text NOT NULL,
    secret      bytea NOT NULL CONSTRAINT webhook_secret_is_long CHECK (octet_length(secret) >= 24),
    kinds       text[] NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL,
    disabled_at timestamptz,
    CONSTRAINT a_webhook_endpoint_is_caused_once UNIQUE (tenant_no, cause)
);
COMMENT ON COLUMN webhook_endpoint.kinds IS 'Which kinds of event it is told; empty: all.';

CREATE TABLE webhook_delivery (
    delivery_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_no     bigint NOT NULL REFERENCES event,
    endpoint_no  integer NOT NULL REFERENCES webhook_endpoint,
    state        text NOT NULL DEFAULT 'queued' CONSTRAINT webhook_delivery_state_is_known
                 CHECK (state IN ('queued', 'delivered', 'failed')),
    attempts     integer NOT NULL DEFAULT 0,
    due_at       timestamptz,
    attempted_at timestamptz,
    delivered_at timestamptz,
    last_status  smallint,
    last_error   text,
    CONSTRAINT an_event_is_delivered_once_to_an_endpoint UNIQUE (event_no, endpoint_no),
    CONSTRAINT a_queued_delivery_is_due CHECK ((state = 'queued') = (due_at IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX webhook_delivery_that_is_due ON webhook_delivery (endpoint_no, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX webhook_delivery_by_endpoint ON webhook_delivery (endpoint_no, delivery_no DESC);
