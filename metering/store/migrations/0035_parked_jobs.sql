-- Charging what is parked is a job as others are: how far it came stands with the job.

ALTER TABLE job DROP CONSTRAINT job_kind_is_known, ADD CONSTRAINT job_kind_is_known
    CHECK (kind IN ('charge_export', 'device_import', 'parked_charge', 'rerating'));
DROP TABLE parked_charge;
