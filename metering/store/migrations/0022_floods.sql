-- Devices that sent more than they may, and for how long each then publishes nothing.

CREATE TABLE device_flood (
    device_no  bigint NOT NULL REFERENCES device,
    held_from  timestamptz NOT NULL,
    held_until timestamptz NOT NULL,
    messages   bigint NOT NULL,
    octets     bigint NOT NULL,
    seconds    double precision NOT NULL,
    PRIMARY KEY (device_no, held_from),
    CONSTRAINT a_flooding_device_is_held_for_a_while CHECK (held_until > held_from)
);
COMMENT ON TABLE device_flood IS 'Floods: a device sent more than it may, and has no right to publish for a while.';
COMMENT ON COLUMN device_flood.messages IS 'How many of its messages, with how many octets, came within so many seconds.';

ALTER TABLE device_flood ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON device_flood TO fleetmeter_api
    USING (EXISTS (SELECT FROM device WHERE device.device_no = device_flood.device_no));
GRANT SELECT ON device_flood TO fleetmeter_api;

-- A device that is held hears commands and answers them, as a suspended one does.
CREATE OR REPLACE FUNCTION broker_right(device bigint, revoked timestamptz, at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN revoked IS NOT NULL THEN 'none'
        ELSE CASE (SELECT state FROM device_state_change
                   WHERE device_no = device AND effective_from <= at
                   ORDER BY effective_from DESC LIMIT 1)
            WHEN 'suspended' THEN 'listen'
            WHEN 'retired' THEN 'none'
            ELSE CASE WHEN EXISTS (SELECT FROM device_flood
                                   WHERE device_no = device AND held_from <= at AND held_until > at)
                THEN 'listen' ELSE 'publish' END
        END
    END
$$;

-- When a device's right may change next by what is known: a dated state, or the end of its being held.
CREATE FUNCTION broker_right_changes_at(device bigint, at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT least(
        (SELECT min(effective_from) FROM device_state_change WHERE device_no = device AND effective_from > at),
        (SELECT min(held_until) FROM device_flood WHERE device_no = device AND held_until > at))
$$;

ALTER TABLE command DROP CONSTRAINT command_kind_is_known, ADD CONSTRAINT command_kind_is_known
    CHECK (kind IN ('balance', 'throttle', 'suspend', 'resume', 'grant', 'hold'));
