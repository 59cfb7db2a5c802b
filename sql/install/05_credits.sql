-- What the tables and views need to know of credits.

CREATE FUNCTION apikeys.is_refill(every interval, day int) RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_is_refill';
COMMENT ON FUNCTION apikeys.is_refill(interval, int) IS
'Whether credits can refill at an interval.
Months alone, with a day of 1 to 31 (31 is the last one) or none; whole weeks,
with a day of 1 (Monday) to 7 or none; or other days and shorter units, of whole
seconds, without a day. False for no interval.';

CREATE FUNCTION apikeys.refill_times(
    every interval,
    day int,
    since timestamptz,
    at timestamptz,
    OUT previous timestamptz,
    OUT next timestamptz
) RETURNS record
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'apikeys_refill_times';
COMMENT ON FUNCTION apikeys.refill_times(interval, int, timestamptz, timestamptz) IS
'When credits refill: the last time at or before a moment, and the next one.
since is when the refill was set up. Several months count from January, several
weeks or days from the week or day of since, other intervals from since itself.
Days begin at midnight UTC. Errors: 22023 for what apikeys.is_refill refuses.';

CREATE FUNCTION apikeys.credit_account(
    subject_id uuid,
    subject text,
    credits bigint,
    refill_amount bigint,
    refill_every interval,
    refill_day int,
    refill_since timestamptz,
    apply_refill boolean,
    OUT spent bigint,
    OUT charged bigint,
    OUT next_refill timestamptz
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'apikeys_credit_account';
COMMENT ON FUNCTION apikeys.credit_account(uuid, text, bigint, bigint, interval, int, timestamptz, boolean) IS
'What has become of credits, from the meter.
spent is what was consumed in all, charged the same less what refills have
added: credits - charged is the balance. With apply_refill, one that is due is
applied and durable before the answer; without, it is only reckoned with.
Errors: 53000 if the worker cannot keep up.';

CREATE FUNCTION apikeys.balance(
    subject_id uuid,
    subject text,
    credits bigint,
    refill_amount bigint,
    refill_every interval,
    refill_day int,
    refill_since timestamptz
) RETURNS bigint
LANGUAGE c STABLE PARALLEL UNSAFE COST 100
AS 'MODULE_PATHNAME', 'apikeys_balance';
COMMENT ON FUNCTION apikeys.balance(uuid, text, bigint, bigint, interval, int, timestamptz) IS
'What is left of credits, from the meter.
NULL if they are unlimited. Below zero if more was deducted than was left.';

REVOKE EXECUTE ON FUNCTION
    apikeys.is_refill(interval, int),
    apikeys.refill_times(interval, int, timestamptz, timestamptz),
    apikeys.credit_account(uuid, text, bigint, bigint, interval, int, timestamptz, boolean),
    apikeys.balance(uuid, text, bigint, bigint, interval, int, timestamptz)
FROM PUBLIC;
