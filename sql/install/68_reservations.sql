-- Reservations: an amount held now, of which what was used is charged later.

CREATE FUNCTION @extschema@.apikey_reserve(
    key text,
    max_cost bigint,
    ttl interval DEFAULT '10 minutes',
    endpoint text DEFAULT NULL,
    method text DEFAULT NULL,
    ip_address inet DEFAULT NULL
) RETURNS apikeys.reservation
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_reserve';
COMMENT ON FUNCTION @extschema@.apikey_reserve(text, bigint, interval, text, text, inet) IS
'Verify an API key and hold what the request may cost.
Charges max_cost (1 to 2^31) to every limit, as apikey_verify would; apikey_settle
then charges what was used and gives the rest back. After ttl (at most 7 days)
all of it is given back; in a crash of the server it stays charged. Neither
depends on the transaction. Errors: 22004 and 22023 for arguments, 53400 if too
many reservations are held, 54000 for a key with more than 8 limits, else as
apikey_verify.';

CREATE FUNCTION @extschema@.apikey_settle(
    reservation_id uuid,
    actual_cost bigint
) RETURNS apikeys.verification
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikey_settle';
COMMENT ON FUNCTION @extschema@.apikey_settle(uuid, bigint) IS
'Charge what was used of a reservation.
Keeps actual_cost (0 to what was reserved) of what is held and gives the rest
back, to the period in which it was reserved; it is durable when the function
returns, whatever becomes of the transaction. Returns the usage after it. Errors:
P0002 for an unknown reservation, 55000 for one that was settled or whose
deadline has passed, 22004 and 22023 for arguments, 53000 if the worker cannot
keep up.';

CREATE FUNCTION apikeys.held_reservations(
    OUT id uuid,
    OUT key_id uuid,
    OUT max_cost bigint,
    OUT created_at timestamptz,
    OUT deadline timestamptz
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'apikeys_held_reservations';
COMMENT ON FUNCTION apikeys.held_reservations() IS
'The reservations of this database that are neither settled nor past their deadline.';

REVOKE EXECUTE ON FUNCTION
    @extschema@.apikey_reserve(text, bigint, interval, text, text, inet),
    @extschema@.apikey_settle(uuid, bigint),
    apikeys.held_reservations()
FROM PUBLIC;

CREATE VIEW apikeys.reservations AS
SELECT r.id, r.key_id, k.name, k.user_id, r.max_cost, r.created_at, r.deadline
  FROM apikeys.held_reservations() r
  LEFT JOIN apikeys.keys k ON k.id = r.key_id;
COMMENT ON VIEW apikeys.reservations IS 'What is reserved and not yet settled';
COMMENT ON COLUMN apikeys.reservations.id IS 'The reservation, for apikey_settle';
COMMENT ON COLUMN apikeys.reservations.key_id IS 'The key that reserved';
COMMENT ON COLUMN apikeys.reservations.name IS 'Name of the key';
COMMENT ON COLUMN apikeys.reservations.user_id IS 'Owner of the key';
COMMENT ON COLUMN apikeys.reservations.max_cost IS 'What is held';
COMMENT ON COLUMN apikeys.reservations.created_at IS 'When it was reserved';
COMMENT ON COLUMN apikeys.reservations.deadline IS 'When it is given back if it is not settled';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.request_ids
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.request_ids ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.request_ids IS 'The meter depends on its durable side';

CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON apikeys.reservation_marks
    FOR EACH STATEMENT EXECUTE FUNCTION apikeys.refuse_truncate();
ALTER TABLE apikeys.reservation_marks ENABLE ALWAYS TRIGGER refuse_truncate;
COMMENT ON TRIGGER refuse_truncate ON apikeys.reservation_marks IS 'The meter depends on its durable side';
