/*-------------------------------------------------------------------------
 *
 * usage.c
 *	  Read the meter: usage of a key, of a user, of all.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/tuplestore.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikey_usage);
PG_FUNCTION_INFO_V1(apikey_user_usage);
PG_FUNCTION_INFO_V1(apikeys_meter);
PG_FUNCTION_INFO_V1(apikeys_count_of);
PG_FUNCTION_INFO_V1(apikeys_period_start);
PG_FUNCTION_INFO_V1(apikeys_period_end);

/* Columns of apikeys.usage_report. */
enum
{
	REPORT_KEY_ID,
	REPORT_USER_ID,
	REPORT_PLAN_ID,
	REPORT_CURRENT_USAGE,
	REPORT_LIMIT,
	REPORT_REMAINING,
	REPORT_RESET_TIME,
	REPORT_PERIOD,
	REPORT_PERIOD_START,
	REPORT_SUBJECT,
	REPORT_LIMITS,
	REPORT_CREDITS,
	REPORT_COLUMNS
};

/*
 * A row of apikeys.usage_report about a subject's current period.  key is NULL
 * for what the keys of a user share.
 */
static Datum
report(FunctionCallInfo fcinfo, const AkKey *key, const char *user_id,
	   const AkSubject *subject)
{
	TupleDesc	desc;
	Datum		values[REPORT_COLUMNS] = {0};
	bool		nulls[REPORT_COLUMNS] = {0};
	AkCharge	charge;
	const AkLimit *quota = &charge.limits[0];
	const AkLimit *credits;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != REPORT_COLUMNS)
		elog(ERROR, "unexpected result type of a usage report");

	ak_charge_prepare(&charge, key, subject, 0, NULL, true,
					  GetCurrentTimestamp());
	ak_meter_look(&charge);

	nulls[REPORT_KEY_ID] = key == NULL;
	if (key != NULL)
		values[REPORT_KEY_ID] = UUIDPGetDatum(&key->id);
	nulls[REPORT_USER_ID] = user_id[0] == '\0';
	values[REPORT_USER_ID] = CStringGetTextDatum(user_id);
	nulls[REPORT_PLAN_ID] = subject->plan.id[0] == '\0';
	values[REPORT_PLAN_ID] = CStringGetTextDatum(subject->plan.id);
	values[REPORT_CURRENT_USAGE] = Int64GetDatum(quota->count.billed);
	nulls[REPORT_LIMIT] = nulls[REPORT_REMAINING] = quota->amount < 0;
	values[REPORT_LIMIT] = Int64GetDatum(quota->amount);
	values[REPORT_REMAINING] = Int64GetDatum(ak_limit_remaining(&charge, quota));
	values[REPORT_RESET_TIME] = TimestampTzGetDatum(charge.span.end);
	values[REPORT_PERIOD] = CStringGetTextDatum(ak_period_name(subject->plan.period));
	values[REPORT_PERIOD_START] = TimestampTzGetDatum(charge.span.start);
	values[REPORT_SUBJECT] = CStringGetTextDatum(subject->is_user ? "user" : "key");
	values[REPORT_LIMITS] = ak_charge_show(&charge);
	credits = ak_charge_credits(&charge);
	nulls[REPORT_CREDITS] = credits == NULL;
	if (credits != NULL)
		values[REPORT_CREDITS] = Int64GetDatum(ak_limit_remaining(&charge, credits));
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

static void
refuse_null(FunctionCallInfo fcinfo, const char *name)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

/*
 * apikey_usage(id uuid) -> apikeys.usage_report
 *
 * Live usage of the period that is now: the key's own, or its user's where the
 * plan is the user's.  Errors: P0002 if there is no such key.
 */
Datum
apikey_usage(PG_FUNCTION_ARGS)
{
	AkKey		key;
	AkSubject	subject;

	refuse_null(fcinfo, "id");
	AcceptInvalidationMessages();
	ak_key_must_exist(PG_GETARG_UUID_P(0), &key);
	ak_subject_of_key(&key, &subject);
	PG_RETURN_DATUM(report(fcinfo, &key, key.user_id, &subject));
}

/*
 * apikey_user_usage(user_id text) -> apikeys.usage_report
 *
 * Live usage that the keys of a user share.  Errors: P0002 if there is no such
 * user.
 */
Datum
apikey_user_usage(PG_FUNCTION_ARGS)
{
	char	   *id;
	AkUser		user;
	AkSubject	subject;

	refuse_null(fcinfo, "user_id");
	id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	AcceptInvalidationMessages();
	if (strlen(id) >= AK_ID_LEN || !ak_user_by_id(id, &user))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("user \"%s\" does not exist", id)));
	ak_subject_of_user(&user, &subject);
	PG_RETURN_DATUM(report(fcinfo, NULL, user.id, &subject));
}

/*
 * apikeys.meter() -> SETOF (subject_id, subject, period, period_start,
 *							 current_usage, charged, ceiling)
 *
 * The counts of this database that are in memory.  Each is read under its
 * lock; together they are no snapshot.
 */
Datum
apikeys_meter(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	uint32		generation;

	AcceptInvalidationMessages();
	generation = ak_catalog()->generation;
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < ak_max_tracked_keys; i++)
	{
		MeterEntry *entry = &ak_shared->entries[i];
		MeterEntry	copy;
		MeterKey	key = entry->key;
		LWLock	   *lock;
		Datum		values[7];
		bool		nulls[7] = {0};

		CHECK_FOR_INTERRUPTS();
		if (!entry->in_use || key.generation != generation ||
			key.period == AK_RATE || key.period == AK_REQUEST)
			continue;
		lock = ak_partition_lock(&key);
		LWLockAcquire(lock, LW_SHARED);
		copy = *entry;
		LWLockRelease(lock);
		if (!copy.in_use || memcmp(&copy.key, &key, sizeof(key)) != 0)
			continue;

		values[0] = UUIDPGetDatum(&copy.key.subject_id);
		values[1] = CStringGetTextDatum(copy.key.is_user ? "user" : "key");
		values[2] = CStringGetTextDatum(ak_period_name(copy.key.period));
		values[3] = TimestampTzGetDatum(copy.key.period_start);
		values[4] = Int64GetDatum(copy.charged - copy.lost);
		values[5] = Int64GetDatum(copy.charged);
		values[6] = Int64GetDatum(copy.ceiling);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static AkPeriod
period_arg(FunctionCallInfo fcinfo, int arg)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	AkPeriod	period;

	if (!ak_period_parse(name, &period))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized period \"%s\"", name),
				 errhint("Use minute, hour, day, week, month or year.")));
	return period;
}

/*
 * apikeys.count_of(subject_id uuid, subject text, period text,
 *					period_start timestamptz, max_requests bigint)
 *		-> (current_usage, charged)
 */
Datum
apikeys_count_of(PG_FUNCTION_ARGS)
{
	AkCharge	charge = {.nlimits = 1};
	AkLimit    *quota = &charge.limits[0];
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {0};

	for (int i = 0; i < 4; i++)
		if (PG_ARGISNULL(i))
			PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type");
	AcceptInvalidationMessages();
	ak_meter_key(&quota->key, ak_catalog(), PG_GETARG_UUID_P(0),
				 strcmp(text_to_cstring(PG_GETARG_TEXT_PP(1)), "user") == 0,
				 period_arg(fcinfo, 2), PG_GETARG_TIMESTAMPTZ(3));
	quota->amount = PG_ARGISNULL(4) ? -1 : PG_GETARG_INT64(4);
	ak_meter_look(&charge);
	values[0] = Int64GetDatum(quota->count.billed);
	values[1] = Int64GetDatum(quota->count.charged);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

static void
period_args(FunctionCallInfo fcinfo, AkSpan *span)
{
	AkPeriod	period = period_arg(fcinfo, 0);

	if (period != AK_CREDITS &&
		TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(2)))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	ak_period_at(period,
				 TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(1)) ?
				 AK_CALENDAR : PG_GETARG_TIMESTAMPTZ(1),
				 PG_GETARG_TIMESTAMPTZ(2), span);
}

/* apikeys.period_start(period text, anchor timestamptz, at timestamptz) */
Datum
apikeys_period_start(PG_FUNCTION_ARGS)
{
	AkSpan		span;

	period_args(fcinfo, &span);
	PG_RETURN_TIMESTAMPTZ(span.start);
}

/* apikeys.period_end(period text, anchor timestamptz, at timestamptz) */
Datum
apikeys_period_end(PG_FUNCTION_ARGS)
{
	AkSpan		span;

	period_args(fcinfo, &span);
	PG_RETURN_TIMESTAMPTZ(span.end);
}
