/*-------------------------------------------------------------------------
 *
 * reserve.c
 *	  Hold an amount now, and charge what was used of it later.
 *
 * A reservation is a verification that charges all it may come to, and is
 * remembered in shared memory with what it has charged.  When it is settled the
 * rest goes back to the counts that were charged, whatever period is now; at
 * its deadline the worker gives all of it back.  Reservations are written down
 * only while the meter is closed (incarnation.c): what is not settled when the
 * server crashes stays charged.
 *
 * Where they are kept: reservation_table.c.  The worker's side: release.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "meter.h"
#include "reserve.h"
#include "verify.h"

PG_FUNCTION_INFO_V1(apikey_reserve);
PG_FUNCTION_INFO_V1(apikey_settle);

/* Arguments of apikey_reserve(). */
enum
{
	ARG_KEY,
	ARG_MAX_COST,
	ARG_TTL,
	ARG_ENDPOINT,
	ARG_METHOD,
	ARG_IP_ADDRESS
};

/* apikeys.reservation: a verification, and then these. */
enum
{
	OUT_RESERVATION_ID = OUT_COLUMNS,
	OUT_DEADLINE,
	OUT_RESERVATION_COLUMNS
};

#define TTL_MAX (7 * USECS_PER_DAY)

/* ----- reserving ----- */

static int64
ttl_arg(FunctionCallInfo fcinfo)
{
	const Interval *ttl;
	int64		usecs;

	if (PG_ARGISNULL(ARG_TTL))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("ttl must not be null")));
	ttl = PG_GETARG_INTERVAL_P(ARG_TTL);
	usecs = ttl->day > 7 || ttl->day < -7 || ttl->month != 0 ? -1 :
		ttl->day * USECS_PER_DAY;
	if (usecs < 0 || ttl->time > TTL_MAX - usecs || usecs + ttl->time <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be positive and at most 7 days"),
				 errhint("A reservation that is not settled is given back after this time.")));
	return usecs + ttl->time;
}

static int64
max_cost_arg(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_MAX_COST))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("max_cost must not be null")));
	if (PG_GETARG_INT64(ARG_MAX_COST) < 1 ||
		PG_GETARG_INT64(ARG_MAX_COST) > AK_COST_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_cost must be between 1 and %lld",
						(long long) AK_COST_MAX)));
	return PG_GETARG_INT64(ARG_MAX_COST);
}

/* Take a place, right before the charge. */
void
ak_reservation_prepare(const AkReservationKey *key, TimestampTz now,
					   TimestampTz deadline)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_enter(key);
	if (r != NULL)
	{
		r->state = AK_PENDING;
		r->is_written = false;
		r->charged_at = now;
		r->deadline = deadline;
	}
	LWLockRelease(ak_shared->reservations);
	if (r == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many reservations are held"),
				 errhint("Settle them, give them a shorter ttl, or raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_reservations", ak_max_reservations)));
}

/*
 * Also at an error, or the end of the session, before anything is charged;
 * perhaps before a place was taken.
 */
static void
drop_reservation(int code, Datum arg)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_find((AkReservationKey *) DatumGetPointer(arg));
	if (r != NULL)
		ak_reservation_remove(r);
	LWLockRelease(ak_shared->reservations);
}

/* What was charged is held from now on. */
static void
keep_reservation(const AkReservationKey *key, const Decision *d,
				 int64 max_cost)
{
	AkReservation *r;

	/* Only a dropped extension forgets it. */
	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_find(key);
	if (r != NULL)
	{
		r->key_id = d->key.id;
		r->charged_at = d->charge.now;
		r->max_cost = max_cost;
		r->nholds = d->charge.nlimits;
		for (int i = 0; i < r->nholds; i++)
		{
			const AkLimit *limit = &d->charge.limits[i];

			r->holds[i].key = limit->key;
			r->holds[i].amount = limit->amount;
			r->holds[i].emission = limit->rate.emission;
			r->holds[i].lost = limit->lost;
			r->holds[i].arrival = limit->arrival;
			r->holds[i].life = limit->life;
		}
		ak_reservation_hold(ak_database_of(&d->charge.limits[0].key), r);
	}
	LWLockRelease(ak_shared->reservations);
}

static TupleDesc
result_desc(FunctionCallInfo fcinfo, int columns)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != columns)
		elog(ERROR, "unexpected columns in the type of a reservation");
	return BlessTupleDesc(desc);
}

/*
 * apikey_reserve(key text, max_cost bigint, ttl interval, endpoint text,
 *				  method text, ip_address inet) -> apikeys.reservation
 *
 * Verify a secret and charge max_cost, to be settled within ttl.  Errors: 22004
 * and 22023 for arguments, 53400 if too many reservations are held, 54000 if
 * the key has too many limits, else as apikey_verify().
 */
Datum
apikey_reserve(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = result_desc(fcinfo, OUT_RESERVATION_COLUMNS);
	RecordSpace record;
	AkReservationKey key;
	Request		request = {.reservation = &key,.record = &record.record};
	Decision	decision;
	int64		ttl = ttl_arg(fcinfo);
	Datum		values[OUT_RESERVATION_COLUMNS];
	bool		nulls[OUT_RESERVATION_COLUMNS];

	request.cost = max_cost_arg(fcinfo);
	request.secret = fcinfo->args[ARG_KEY];
	request.ip_address = PG_ARGISNULL(ARG_IP_ADDRESS) ? NULL :
		PG_GETARG_INET_PP(ARG_IP_ADDRESS);
	request.now = GetCurrentTimestamp();
	ak_record_prepare(request.record, request.now, request.cost,
					  request.ip_address, fcinfo->args[ARG_ENDPOINT],
					  fcinfo->args[ARG_METHOD],
					  (NullableDatum) {.isnull = true});

	AcceptInvalidationMessages();
	key.generation = ak_catalog()->generation;
	ak_uuidv7(&key.id);
	request.deadline = request.now + ttl;
	PG_ENSURE_ERROR_CLEANUP(drop_reservation, PointerGetDatum(&key));
	{
		ak_decide(&request, &decision);
	}
	PG_END_ENSURE_ERROR_CLEANUP(drop_reservation, PointerGetDatum(&key));

	/*
	 * First of all, with nothing before it that can fail.  A standby admits what
	 * is unlimited, and holds nothing of it.
	 */
	if (decision.outcome == AK_VALID && decision.is_metered)
		keep_reservation(&key, &decision, request.cost);
	else if (decision.is_metered)
		drop_reservation(0, PointerGetDatum(&key));
	if (decision.outcome == AK_VALID)
		ak_current_remember(&decision.key, &decision.subject);

	ak_answer(&request, &decision, values, nulls);
	nulls[OUT_RESERVATION_ID] = nulls[OUT_DEADLINE] =
		decision.outcome != AK_VALID || !decision.is_metered;
	values[OUT_RESERVATION_ID] = UUIDPGetDatum(&key.id);
	values[OUT_DEADLINE] = TimestampTzGetDatum(request.deadline);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* ----- settling ----- */

/* A reservation as a charge of which "used" is kept. */
void
ak_reservation_charge(const AkReservation *r, int64 used, AkCharge *charge)
{
	memset(charge, 0, offsetof(AkCharge, limits));
	charge->now = r->charged_at;
	charge->nlimits = r->nholds;
	for (int i = 0; i < r->nholds; i++)
	{
		AkLimit    *limit = &charge->limits[i];

		memset(limit, 0, sizeof(AkLimit));
		limit->key = r->holds[i].key;
		limit->amount = r->holds[i].amount;
		limit->rate.emission = r->holds[i].emission;
		limit->lost = r->holds[i].lost;
		limit->arrival = r->holds[i].arrival;
		limit->life = r->holds[i].life;
		limit->cost = r->max_cost;
		limit->used = used;
	}
}

static void
refuse_settlement(const pg_uuid_t *id, const AkReservation *r,
				  int64 actual_cost)
{
	char	   *shown = ak_uuid_text(id);

	if (r == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("reservation \"%s\" does not exist", shown),
				 errdetail("It was never made in this database, ended long ago, or was lost in a crash and stays charged.")));
	if (r->state == AK_ENDED_SETTLED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("reservation \"%s\" is settled already", shown)));
	if (r->state == AK_SETTLING)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("reservation \"%s\" is being settled", shown)));
	if (r->state != AK_HELD || actual_cost <= r->max_cost)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("reservation \"%s\" has ended", shown),
				 errdetail("Its deadline has passed, and what it held was given back."),
				 errhint("Reserve with a longer ttl.")));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("actual_cost is above what was reserved"),
			 errdetail("The reservation holds %lld.", (long long) r->max_cost),
			 errhint("Charge the rest with apikey_verify().")));
}

/* While the meter is closed, reservations are not in memory. */
static void
wait_until_open(AkDatabase *db)
{
	AkWait		wait;

	ak_wait_begin(&wait, db, ak_meter_timeout);
	while (!db->open)
		if (!ak_wait_once(&wait))
			ak_wait_failed(&wait);
	ak_wait_end(&wait);
}

/* Not held yet, or ended for longer than is told. */
static bool
is_unknown(const AkReservation *r)
{
	return r->state == AK_PENDING ||
		(ak_reservation_has_ended(r) && r->deadline <= GetCurrentTimestamp());
}

/*
 * Claim a reservation that can be settled, or raise an error.
 */
static void
claim_to_settle(AkDatabase *db, const AkReservationKey *key, int64 actual_cost,
				AkReservation *claimed)
{
	AkReservation *r;
	bool		was_open;
	bool		can_settle;

	do
	{
		wait_until_open(db);
		can_settle = false;
		LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
		was_open = db->open;
		r = ak_reservation_find(key);
		if (r != NULL && is_unknown(r))
			r = NULL;
		if (r != NULL)
		{
			*claimed = *r;
			can_settle = was_open && r->state == AK_HELD &&
				r->deadline > GetCurrentTimestamp() &&
				actual_cost <= r->max_cost;
		}
		if (can_settle)
			ak_reservation_claim(db, r);
		LWLockRelease(ak_shared->reservations);
	} while (!was_open);
	if (!can_settle)
		refuse_settlement(&key->id, r == NULL ? NULL : claimed, actual_cost);
}

/* For how long at least it is known that a reservation was released. */
#define RELEASED_TIME (60 * USECS_PER_SEC)

/* The end of a claim: settled, released, or held as before. */
void
ak_reservation_end_claim(AkDatabase *db, const AkReservation *claimed,
						 AkReservationState state)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = ak_reservation_find(&claimed->key);
	if (r != NULL && state == AK_HELD)
		ak_reservation_hold(db, r);
	else if (r != NULL)
		ak_reservation_end(r, state);

	/* Remembered for as long again, so that who comes late is told why. */
	if (r != NULL && state == AK_ENDED_RELEASED)
		r->deadline = GetCurrentTimestamp() +
			Max(r->deadline - r->charged_at, RELEASED_TIME);
	LWLockRelease(ak_shared->reservations);
}

/* What became of a reservation, for the history: the cost is corrected. */
void
ak_reservation_end_record(const AkReservation *r, AkOutcome outcome, int64 used,
						  AkRecord *record)
{
	NullableDatum none = {.isnull = true};

	ak_record_prepare(record, GetCurrentTimestamp(), used - r->max_cost, NULL,
					  none, none, none);
	record->outcome = outcome;
	record->key_id = r->key_id;
}

static int64
actual_cost_arg(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null",
						PG_ARGISNULL(0) ? "reservation_id" : "actual_cost")));
	if (PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("actual_cost must not be negative")));
	return PG_GETARG_INT64(1);
}

typedef struct Settlement
{
	AkDatabase *db;
	AkReservation claimed;
	AkCharge	charge;
	AkRecord   *record;			/* NULL: none to be written, or none any more */
} Settlement;

/*
 * An error, or the end of the session, before all was done: what is settled
 * stays so, what is not is held as before.
 */
static void
abandon_settlement(int code, Datum arg)
{
	Settlement *s = (Settlement *) DatumGetPointer(arg);

	ak_reservation_end_claim(s->db, &s->claimed,
							 s->charge.changed ? AK_ENDED_SETTLED : AK_HELD);
	if (s->charge.changed && s->record != NULL)
		(void) ak_history_append(s->db, s->record, true);
}

static void
settle(Settlement *s)
{
	PG_ENSURE_ERROR_CLEANUP(abandon_settlement, PointerGetDatum(s));
	{
		(void) ak_meter_change(&s->charge, AK_SETTLE);
		if (s->record != NULL)
			ak_history_remember(s->db, s->record);
		s->record = NULL;
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon_settlement, PointerGetDatum(s));
	ak_reservation_end_claim(s->db, &s->claimed, AK_ENDED_SETTLED);
}

/*
 * apikey_settle(reservation_id uuid, actual_cost bigint)
 *		-> apikeys.verification
 *
 * Charge what was used of a reservation, and give the rest back.  Durable when
 * it returns.  Errors: P0002 for an unknown reservation, 55000 for one that has
 * ended, 22004 and 22023 for arguments, 25006 on a standby, 53000 if the worker
 * does not come.
 */
Datum
apikey_settle(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = result_desc(fcinfo, OUT_COLUMNS);
	int64		actual_cost = actual_cost_arg(fcinfo);
	AkReservationKey key = {.id = *PG_GETARG_UUID_P(0)};
	Settlement	settlement = {.record = NULL};
	RecordSpace record;
	Request		request = {.cost = 0,.now = GetCurrentTimestamp()};
	Decision	decision = {.outcome = AK_VALID};
	Datum		values[OUT_COLUMNS];
	bool		nulls[OUT_COLUMNS];

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot settle a reservation during recovery"),
				 errhint("Settle it on the primary server.")));
	AcceptInvalidationMessages();
	settlement.db = ak_catalog()->db;
	key.generation = ak_catalog()->generation;
	claim_to_settle(settlement.db, &key, actual_cost, &settlement.claimed);
	ak_reservation_charge(&settlement.claimed, actual_cost, &settlement.charge);
	ak_reservation_end_record(&settlement.claimed, AK_SETTLED, actual_cost,
							  &record.record);
	settlement.record = &record.record;
	settle(&settlement);

	decision.key_is_known = ak_key_by_id(&settlement.claimed.key_id, &decision.key);
	if (decision.key_is_known)
	{
		ak_subject_of_key(&decision.key, &decision.subject);
		ak_charge_prepare(&decision.charge, &decision.key, &decision.subject,
						  0, NULL, false, request.now);
		ak_meter_look(&decision.charge);
		decision.is_metered = true;
	}
	ak_answer(&request, &decision, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
