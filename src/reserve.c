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
 * All of it is guarded by the reservations lock, which is not held while counts
 * change: who sets the state of a reservation to ended is alone in settling it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"

#include "verify.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(apikey_reserve);
PG_FUNCTION_INFO_V1(apikey_settle);
PG_FUNCTION_INFO_V1(apikeys_held_reservations);

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

static HTAB *reservations;

Size
ak_reservations_shmem_size(void)
{
	return hash_estimate_size(ak_max_reservations, sizeof(AkReservation));
}

void
ak_reservations_shmem_init(void)
{
	HASHCTL		ctl = {
		.keysize = sizeof(pg_uuid_t),
		.entrysize = sizeof(AkReservation)
	};

	reservations = ShmemInitHash("apikeys reservations", ak_max_reservations,
								 ak_max_reservations, &ctl,
								 HASH_ELEM | HASH_BLOBS);
}

/* ----- the table; the caller holds its lock ----- */

static bool
has_ended(const AkReservation *r)
{
	return r->state == AK_ENDED_SETTLED || r->state == AK_ENDED_RELEASED;
}

/* Forget what has ended, or what was never decided on; early if need be. */
static void
remove_ended(TimestampTz now, bool before_deadline)
{
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	hash_seq_init(&seq, reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		if ((has_ended(r) && (before_deadline || r->deadline <= now)) ||
			(r->state == AK_PENDING && r->deadline <= now))
			hash_search(reservations, &r->id, HASH_REMOVE, NULL);
}

/* A new reservation, or NULL if there is no room. */
static AkReservation *
enter(const pg_uuid_t *id, TimestampTz now)
{
	if (hash_get_num_entries(reservations) >= ak_max_reservations)
		remove_ended(now, true);
	if (hash_get_num_entries(reservations) >= ak_max_reservations)
		return NULL;
	return hash_search(reservations, id, HASH_ENTER_NULL, NULL);
}

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

/* Take a place before anything is charged. */
static void
prepare_reservation(pg_uuid_t *id, TimestampTz now, TimestampTz deadline)
{
	AkReservation *r;

	ak_uuidv7(id);
	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = enter(id, now);
	if (r != NULL)
	{
		r->state = AK_PENDING;
		r->generation = ak_catalog()->generation;
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

static void
drop_reservation(const pg_uuid_t *id)
{
	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	hash_search(reservations, id, HASH_REMOVE, NULL);
	LWLockRelease(ak_shared->reservations);
}

/* What was charged is held from now on. */
static void
keep_reservation(const pg_uuid_t *id, const Decision *d, int64 max_cost)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = hash_search(reservations, id, HASH_FIND, NULL);
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
			r->holds[i].refilled = limit->refilled;
		}
		r->state = AK_HELD;
		pg_atomic_fetch_add_u32(&ak_catalog()->db->reserved, 1);
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
	Request		request = {.reserve = true,.record = &record.record};
	Decision	decision;
	int64		ttl = ttl_arg(fcinfo);
	pg_uuid_t	id;
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
	prepare_reservation(&id, request.now, request.now + ttl);
	PG_TRY();
	{
		ak_decide(&request, &decision);
	}
	PG_CATCH();
	{
		drop_reservation(&id);
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (decision.outcome == AK_VALID)
		ak_current_remember(&decision.key, &decision.subject);

	/* A standby admits what is unlimited, and holds nothing of it. */
	if (decision.outcome == AK_VALID && decision.is_metered)
		keep_reservation(&id, &decision, request.cost);
	else
		drop_reservation(&id);

	ak_answer(&request, &decision, values, nulls);
	nulls[OUT_RESERVATION_ID] = nulls[OUT_DEADLINE] =
		decision.outcome != AK_VALID || !decision.is_metered;
	values[OUT_RESERVATION_ID] = UUIDPGetDatum(&id);
	values[OUT_DEADLINE] = TimestampTzGetDatum(request.now + ttl);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* ----- settling ----- */

/* A reservation as a charge of which "used" is kept. */
static void
charge_of(const AkReservation *r, int64 used, AkCharge *charge)
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
		limit->refilled = r->holds[i].refilled;
		limit->cost = r->max_cost;
		limit->used = used;
	}
}

static void
refuse_settlement(const pg_uuid_t *id, const AkReservation *r,
				  int64 actual_cost)
{
	char	   *shown = DatumGetCString(DirectFunctionCall1(uuid_out,
															UUIDPGetDatum(id)));

	if (r == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("reservation \"%s\" does not exist", shown),
				 errdetail("It was never made in this database, ended long ago, or was lost in a crash and stays charged.")));
	if (r->state == AK_ENDED_SETTLED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("reservation \"%s\" is settled already", shown)));
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

/*
 * End a reservation: from here on the caller alone may settle it.
 */
static void
claim(const pg_uuid_t *id, int64 actual_cost, AkReservation *claimed)
{
	AkDatabase *db = ak_catalog()->db;
	TimestampTz now = GetCurrentTimestamp();
	AkReservation *r;
	bool		can_settle = false;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = hash_search(reservations, id, HASH_FIND, NULL);
	if (r != NULL && (r->generation != db->generation ||
					  r->state == AK_PENDING))
		r = NULL;
	if (r != NULL)
	{
		*claimed = *r;
		can_settle = r->state == AK_HELD && r->deadline > now &&
			actual_cost <= r->max_cost;
	}
	if (can_settle)
	{
		r->state = AK_ENDED_SETTLED;
		pg_atomic_fetch_sub_u32(&db->reserved, 1);
	}
	LWLockRelease(ak_shared->reservations);
	if (!can_settle)
		refuse_settlement(id, r == NULL ? NULL : claimed, actual_cost);
}

/* It could not be settled: it is held as before. */
static void
unclaim(AkDatabase *db, const AkReservation *claimed)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = hash_search(reservations, &claimed->id, HASH_FIND, NULL);
	if (r != NULL && has_ended(r))
	{
		r->state = AK_HELD;
		r->deadline = claimed->deadline;
		pg_atomic_fetch_add_u32(&db->reserved, 1);
	}
	LWLockRelease(ak_shared->reservations);
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

/* What became of a reservation, for the history: the cost is corrected. */
static void
end_record(const AkReservation *r, AkOutcome outcome, int64 used,
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

/*
 * apikey_settle(reservation_id uuid, actual_cost bigint)
 *		-> apikeys.verification
 *
 * Charge what was used of a reservation, and give the rest back.  Durable when
 * it returns.  Errors: P0002 for an unknown reservation, 55000 for one that has
 * ended, 22004 and 22023 for arguments, 53000 if the worker does not come.
 */
Datum
apikey_settle(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = result_desc(fcinfo, OUT_COLUMNS);
	int64		actual_cost = actual_cost_arg(fcinfo);
	pg_uuid_t	id = *PG_GETARG_UUID_P(0);
	AkReservation claimed;
	AkCharge	charge;
	RecordSpace record;
	Request		request = {.cost = 0,.now = GetCurrentTimestamp()};
	Decision	decision = {.outcome = AK_VALID};
	Datum		values[OUT_COLUMNS];
	bool		nulls[OUT_COLUMNS];

	AcceptInvalidationMessages();
	wait_until_open(ak_catalog()->db);
	claim(&id, actual_cost, &claimed);
	charge_of(&claimed, actual_cost, &charge);
	PG_TRY();
	{
		(void) ak_meter_change(&charge, AK_SETTLE);
	}
	PG_CATCH();
	{
		/* It may have been settled, and not be known to be durable yet. */
		end_record(&claimed, AK_SETTLED, actual_cost, &record.record);
		if (!charge.changed)
			unclaim(ak_catalog()->db, &claimed);
		else
			(void) ak_history_append(ak_catalog()->db, &record.record, true);
		PG_RE_THROW();
	}
	PG_END_TRY();

	end_record(&claimed, AK_SETTLED, actual_cost, &record.record);
	ak_history_remember(ak_catalog()->db, &record.record);
	decision.key_is_known = ak_key_by_id(&claimed.key_id, &decision.key);
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

/* ----- the worker's side ----- */

/* Claim a reservation that is past its deadline.  False if there is none. */
static bool
claim_due(AkDatabase *db, AkReservation *claimed)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	AkReservation *r;
	bool		found = false;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	hash_seq_init(&seq, reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		if (r->generation == db->generation && r->state == AK_HELD &&
			r->deadline <= now)
		{
			/* Remembered for as long again, so that it is told why. */
			r->state = AK_ENDED_RELEASED;
			*claimed = *r;
			r->deadline = now + (r->deadline - r->charged_at);
			pg_atomic_fetch_sub_u32(&db->reserved, 1);
			found = true;
			hash_seq_term(&seq);
			break;
		}
	LWLockRelease(ak_shared->reservations);
	return found;
}

static void
release_due(void *arg)
{
	AkDatabase *db = arg;
	AkReservation claimed;
	AkCharge	charge;
	RecordSpace record;

	while (claim_due(db, &claimed))
	{
		charge_of(&claimed, 0, &charge);
		if (!ak_meter_try_settle(&charge))
		{
			unclaim(db, &claimed);
			return;
		}
		end_record(&claimed, AK_RELEASED, 0, &record.record);
		(void) ak_history_append(db, &record.record, true);
	}
}

/*
 * Give back what is held past its deadline, and forget what has ended.  Only
 * the database's worker may call this.
 */
void
ak_reservations_release_due(AkDatabase *db)
{
	bool		is_due = false;
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	if (hash_get_num_entries(reservations) == 0)
		return;
	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	remove_ended(now, false);
	hash_seq_init(&seq, reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		is_due |= r->generation == db->generation && r->state == AK_HELD &&
			r->deadline <= now;
	LWLockRelease(ak_shared->reservations);
	if (is_due)
		(void) ak_worker_transaction(release_due, db);
}

/*
 * The reservations that a database holds, in the current memory context.
 */
int
ak_reservations_held(AkDatabase *db, AkReservation **held)
{
	int			capacity = pg_atomic_read_u32(&db->reserved) + 64;
	int			n = 0;
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	/* One that is made meanwhile may be left out; a closed meter makes none. */
	*held = palloc(capacity * sizeof(AkReservation));
	LWLockAcquire(ak_shared->reservations, LW_SHARED);
	hash_seq_init(&seq, reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		if (r->generation == db->generation && r->state == AK_HELD &&
			n < capacity)
			(*held)[n++] = *r;
	LWLockRelease(ak_shared->reservations);
	return n;
}

/*
 * Put a reservation back that was held when the meter was closed.  If there is
 * no room for it, it stays charged.
 */
void
ak_reservations_put(AkDatabase *db, const AkReservation *held)
{
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	r = hash_search(reservations, &held->id, HASH_FIND, NULL);
	if (r == NULL)
	{
		r = enter(&held->id, GetCurrentTimestamp());
		if (r != NULL)
		{
			*r = *held;
			pg_atomic_fetch_add_u32(&db->reserved, 1);
		}
	}
	LWLockRelease(ak_shared->reservations);
	if (r == NULL)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("there is no room for a reservation that was held when the meter was closed"),
				 errdetail("Its %lld stay charged.", (long long) held->max_cost),
				 errhint("Raise \"%s\" (now %d) and restart the server.",
						 "apikeys.max_reservations", ak_max_reservations)));
}

/* Forget what a slot's generation holds: it is written down, or of no use. */
void
ak_reservations_forget(uint32 generation)
{
	HASH_SEQ_STATUS seq;
	AkReservation *r;

	LWLockAcquire(ak_shared->reservations, LW_EXCLUSIVE);
	hash_seq_init(&seq, reservations);
	while ((r = hash_seq_search(&seq)) != NULL)
		if (r->generation == generation)
		{
			if (r->state == AK_HELD)
				pg_atomic_fetch_sub_u32(&ak_shared->databases[r->holds[0].key.database].reserved, 1);
			hash_search(reservations, &r->id, HASH_REMOVE, NULL);
		}
	LWLockRelease(ak_shared->reservations);
}

/*
 * apikeys.held_reservations() -> SETOF (id uuid, key_id uuid, max_cost bigint,
 *										 created_at, deadline timestamptz)
 */
Datum
apikeys_held_reservations(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AkReservation *held;
	int			n;

	AcceptInvalidationMessages();
	n = ak_reservations_held(ak_catalog()->db, &held);
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < n; i++)
	{
		Datum		values[5] = {
			UUIDPGetDatum(&held[i].id),
			UUIDPGetDatum(&held[i].key_id),
			Int64GetDatum(held[i].max_cost),
			TimestampTzGetDatum(held[i].charged_at),
			TimestampTzGetDatum(held[i].deadline)
		};
		bool		nulls[5] = {0};

		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
