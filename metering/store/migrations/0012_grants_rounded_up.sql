-- What is drawn of a grant tells what was used of it only where no more is charged than was used.

ALTER TABLE reservation ADD COLUMN rounded_up boolean NOT NULL DEFAULT true;
ALTER TABLE reservation ALTER COLUMN rounded_up DROP DEFAULT;
COMMENT ON COLUMN reservation.rounded_up IS
    'Its price may charge more than is used: by an increment, or by what each record is charged beside its use.';
