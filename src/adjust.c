/*-------------------------------------------------------------------------
 *
 * adjust.c
 *	  Correct a count by hand.
 *
 * The count changes in the meter at once, and is durable when the function
 * returns; it is given back if the transaction aborts, so that it goes with the
 * row that tells of it in apikeys.ledger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_adjust_count);

/*
 * apikeys.adjust_count(id uuid, delta bigint)
 *		-> (delta bigint, subject_id uuid, subject text, period text,
 *			period_start timestamptz)
 *
 * Add to the count of the current period to which the requests of a key go; a
 * delta that is NULL makes it zero.  Errors: P0002 for an unknown key, 22023 if
 * the count would fall below zero, 53000 if the worker does not come in time.
 */
Datum
apikeys_adjust_count(PG_FUNCTION_ARGS)
{
	AkKey		key;
	AkSubject	subject;
	AkCharge	charge;
	AkLimit    *quota = &charge.limits[0];
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {0};

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("id must not be null")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type");
	AcceptInvalidationMessages();
	ak_key_must_exist(PG_GETARG_UUID_P(0), &key);
	ak_subject_of_key(&key, &subject);
	ak_charge_prepare(&charge, &key, &subject, 0, NULL, false,
					  GetCurrentTimestamp());
	charge.nlimits = 1;			/* the quota */
	ak_meter_look(&charge);
	quota->cost = PG_ARGISNULL(1) ? -quota->count.billed : PG_GETARG_INT64(1);

	charge.refundable = true;
	charge.by_hand = true;
	ak_refund_prepare(&charge);
	if (!ak_meter_change(&charge, AK_ADJUST))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("usage cannot be adjusted by %lld",
						(long long) quota->cost),
				 errdetail("It is %lld, and must stay between 0 and 2^61.",
						   (long long) quota->count.billed),
				 errhint("A delta of NULL sets it to zero."),
				 err_generic_string(PG_DIAG_COLUMN_NAME, "delta")));

	values[0] = Int64GetDatum(quota->cost);
	values[1] = UUIDPGetDatum(&subject.subject_id);
	values[2] = CStringGetTextDatum(subject.is_user ? "user" : "key");
	values[3] = CStringGetTextDatum(ak_period_name(subject.plan.period));
	values[4] = TimestampTzGetDatum(charge.span.start);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
