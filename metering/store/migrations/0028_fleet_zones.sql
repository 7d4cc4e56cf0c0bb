-- A fleet's time zone may change from a bill cycle on.

ALTER TABLE fleet ADD COLUMN earlier_zones jsonb NOT NULL DEFAULT '[]'
    CONSTRAINT a_fleets_earlier_zones_are_a_list CHECK (jsonb_typeof(earlier_zones) = 'array');
COMMENT ON COLUMN fleet.time_zone IS 'IANA name: of the days since the last of the earlier ones.';
COMMENT ON COLUMN fleet.earlier_zones IS
    'Zones that it had before, ascending: [name, the local day, with which a cycle begins, that is the next one''s].';
