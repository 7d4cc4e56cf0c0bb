-- What was held at a place in a fleet's history is found by where it ended.

CREATE INDEX reservation_by_end_in_order ON reservation (fleet_no, ended_run_no);
