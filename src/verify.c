/*-------------------------------------------------------------------------
 *
 * verify.c
 *	  The decision about one presented secret.
 *
 * decide() reads like the table of outcomes.  It runs no SPI and no plan,
 * writes no table and takes no row lock, so that it works in READ ONLY
 * transactions and a hot key does not queue.  What it consumes stays consumed
 * whatever becomes of the caller's transaction: the request was made.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "verify.h"

PG_FUNCTION_INFO_V1(apikey_verify);
PG_FUNCTION_INFO_V1(apikey_verify_many);
PG_FUNCTION_INFO_V1(apikeys_key_of_secret);

/* Arguments of apikey_verify(). */
enum
{
	ARG_KEY,
	ARG_ENDPOINT,
	ARG_METHOD,
	ARG_IP_ADDRESS,
	ARG_COST,
	ARG_PERMISSIONS,
	ARG_API_ID,
	ARG_TAGS,
	ARG_ON_ABORT,
	ARG_CHARGES
};

static const char *const outcome_names[] = {
	[AK_MALFORMED] = "MALFORMED",
	[AK_NOT_FOUND] = "NOT_FOUND",
	[AK_DISABLED] = "DISABLED",
	[AK_EXPIRED] = "EXPIRED",
	[AK_FORBIDDEN] = "FORBIDDEN",
	[AK_INSUFFICIENT_PERMISSIONS] = "INSUFFICIENT_PERMISSIONS",
	[AK_RATE_LIMITED] = "RATE_LIMITED",
	[AK_USAGE_EXCEEDED] = "USAGE_EXCEEDED",
	[AK_VALID] = "VALID",
	[AK_SETTLED] = "SETTLED",
	[AK_RELEASED] = "RELEASED",
};

const char *
ak_outcome_name(AkOutcome outcome)
{
	return outcome_names[outcome];
}

/* ----- the parts of the decision ----- */

/*
 * The digest of a presented text, or false if it is no secret.  The size is
 * looked at before anything is read: a huge or compressed value is never
 * expanded.
 */
static bool
digest_of(NullableDatum presented, uint8 digest[AK_DIGEST_LEN])
{
	text	   *secret;
	bool		well_formed;

	if (presented.isnull ||
		toast_raw_datum_size(presented.value) - VARHDRSZ > AK_SECRET_MAX)
		return false;
	secret = DatumGetTextPP(presented.value);
	well_formed = ak_secret_is_well_formed(VARDATA_ANY(secret),
										   VARSIZE_ANY_EXHDR(secret));
	if (well_formed)
		ak_secret_digest(VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret), digest);
	if ((Pointer) secret != DatumGetPointer(presented.value))
		explicit_bzero(VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret));
	return well_formed;
}

/* Of a secret that is well-formed. */
static void
learn_prefix(NullableDatum presented)
{
	text	   *secret = DatumGetTextPP(presented.value);

	ak_redact_learn(VARDATA_ANY(secret),
					VARSIZE_ANY_EXHDR(secret) - AK_SECRET_TAIL - 1);
	if ((Pointer) secret != DatumGetPointer(presented.value))
		explicit_bzero(VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret));
}

/* Deleted, and not merely swept after its expiry. */
static bool
is_deleted(const AkKey *key)
{
	return !key->nulls[AK_KEY_DELETED_AT] &&
		(key->nulls[AK_KEY_EXPIRES_AT] ||
		 DatumGetTimestampTz(key->values[AK_KEY_EXPIRES_AT]) >
		 DatumGetTimestampTz(key->values[AK_KEY_DELETED_AT]));
}

static bool
is_switched_off(const Decision *d)
{
	return !DatumGetBool(d->key.values[AK_KEY_ENABLED]) ||
		!d->key.nulls[AK_KEY_FENCED_AT] ||
		(d->subject.user.exists && !d->subject.user.is_usable) ||
		!d->subject.plan.is_usable;
}

/* Past its time, or deleted after it, though the clock was set back since. */
static bool
is_expired(const AkKey *key, TimestampTz now)
{
	return !key->nulls[AK_KEY_DELETED_AT] ||
		(!key->nulls[AK_KEY_EXPIRES_AT] &&
		 DatumGetTimestampTz(key->values[AK_KEY_EXPIRES_AT]) <= now);
}

static bool
is_from_allowed_ip(const AkKey *key, const inet *ip_address)
{
	inet_struct address;
	inet_struct unmapped;
	Datum	   *networks;
	int			n;

	if (key->nulls[AK_KEY_ALLOWED_IPS])
		return true;
	if (ip_address == NULL)
		return false;
	ak_address_read(ip_address, &address);
	unmapped = address;
	ak_address_unmap(&unmapped);
	deconstruct_array(DatumGetArrayTypeP(key->values[AK_KEY_ALLOWED_IPS]),
					  CIDROID, -1, false, TYPALIGN_INT, &networks, NULL, &n);
	for (int i = 0; i < n; i++)
	{
		inet_struct network;

		ak_address_read(DatumGetInetPP(networks[i]), &network);
		if (ak_address_is_within(&address, &network) ||
			ak_address_is_within(&unmapped, &network))
			return true;
	}
	return false;
}

static bool
has_permissions(const AkKey *key, const char *expression)
{
	AkHeld		held;

	if (expression == NULL)
		return true;
	ak_held_by_key(key, &held);
	return ak_permissions_hold(expression, &held);
}

/* A reservation takes its place before the charge: a full table refuses. */
static void
take_place(const Request *request, const AkCharge *charge)
{
	if (charge->nlimits > AK_HOLDS_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the key has too many limits for a reservation"),
				 errdetail("It has %d, and at most %d can be held at once.",
						   charge->nlimits, AK_HOLDS_MAX)));
	ak_reservation_prepare(request->reservation, request->now,
						   request->deadline);
}

/*
 * Hold the request to its limits, and charge it.  A standby has no meter: what
 * is unlimited goes on there unmetered, a limit cannot be decided.
 */
static AkOutcome
meter(const Request *request, Decision *d)
{
	AkOutcome	outcome;

	ak_charge_prepare(&d->charge, &d->key, &d->subject, request->cost,
					  request->costs, false, request->now);
	if (RecoveryInProgress())
	{
		if (d->charge.nlimits == 1 && d->charge.limits[0].amount < 0)
			return AK_VALID;
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot meter a limited key during recovery"),
				 errdetail("Counts are kept on the primary server."),
				 errhint("Verify keys that have a quota, a rate or credits on the primary server.")));
	}

	d->is_metered = true;
	if (ak_charge_is_free(&d->charge))
	{
		ak_meter_look(&d->charge);
		return AK_VALID;
	}
	if (request->reservation != NULL)
		take_place(request, &d->charge);
	request->record->outcome = AK_VALID;
	request->record->cost = d->charge.limits[0].cost;
	d->charge.refundable = request->refund;
	if (request->refund)
		ak_refund_prepare(&d->charge);
	outcome = ak_meter_charge(&d->charge, request->record);
	d->is_charged = outcome == AK_VALID && !d->charge.repeated;
	if (request->refund && d->is_charged)
		ak_refund_keep(&d->charge);
	else if (request->refund)
		ak_refund_drop();
	return outcome;
}

/* The outcome: the first reason to refuse that holds, or VALID. */
static AkOutcome
decide(const Request *request, Decision *d)
{
	uint8		digest[AK_DIGEST_LEN];

	if (!digest_of(request->secret, digest))
		return AK_MALFORMED;

	if (!ak_key_by_digest(digest, request->now, &d->key))
		return AK_NOT_FOUND;
	if (is_deleted(&d->key))
		return AK_NOT_FOUND;
	if (request->api_id != NULL && strcmp(request->api_id, d->key.api_id) != 0)
		return AK_NOT_FOUND;

	d->key_is_known = true;
	request->record->key_id = d->key.id;
	ak_meter_expect_bucket(&d->key.id);
	learn_prefix(request->secret);
	ak_subject_of_key(&d->key, &d->subject);
	ak_meter_expect_entry(&d->key.id);

	if (is_switched_off(d))
		return AK_DISABLED;
	if (is_expired(&d->key, request->now))
		return AK_EXPIRED;
	if (!is_from_allowed_ip(&d->key, request->ip_address))
		return AK_FORBIDDEN;
	if (!has_permissions(&d->key, request->permissions))
		return AK_INSUFFICIENT_PERMISSIONS;
	return meter(request, d);
}

/* Remember what the meter has not: denials, and what needs no record. */
static void
remember(const Request *request, const Decision *d)
{
	AkDatabase *db = ak_catalog()->db;
	bool		is_free = d->is_metered ? ak_charge_is_free(&d->charge) :
		request->cost == 0;

	if (d->is_charged)
		return;
	request->record->outcome = d->outcome;
	if (d->is_metered && d->charge.repeated)
		request->record->cost = 0;
	if (!d->key_is_known || is_free ||
		(request->record->touch_only && RecoveryInProgress()))
		ak_history_count(db, d->outcome);
	else if (RecoveryInProgress())
		ak_history_count_standby(db, d->outcome);
	else
		ak_history_remember(db, request->record);
}

/*
 * Decide about a request, consume what it costs and remember it.
 */
void
ak_decide(Request *request, Decision *decision)
{
	/* An open transaction sees no invalidation otherwise. */
	AcceptInvalidationMessages();

	decision->key_is_known = false;
	decision->is_metered = false;
	decision->is_charged = false;
	decision->outcome = decide(request, decision);
	remember(request, decision);
}

/* ----- arguments ----- */

static char *
text_arg(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

/* An argument that is a cost.  Errors: 22004 and 22023. */
int64
ak_cost_arg(FunctionCallInfo fcinfo, int arg)
{
	int64		cost;

	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("cost must not be null")));
	cost = PG_GETARG_INT64(arg);
	if (cost < 0 || cost > AK_COST_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("cost must be between 0 and %lld",
						(long long) AK_COST_MAX)));
	return cost;
}

/* Checked before the secret is looked at: a bad one never depends on a key. */
static char *
permissions_arg(FunctionCallInfo fcinfo)
{
	return PG_ARGISNULL(ARG_PERMISSIONS) ? NULL :
		ak_permissions_expression(PG_GETARG_DATUM(ARG_PERMISSIONS));
}

static bool
text_is(const text *t, const char *string)
{
	Size		length = strlen(string);

	return VARSIZE_ANY_EXHDR(t) == length &&
		memcmp(VARDATA_ANY(t), string, length) == 0;
}

/* Whether the charge is given back if the transaction aborts. */
static bool
on_abort_arg(FunctionCallInfo fcinfo)
{
	if (!PG_ARGISNULL(ARG_ON_ABORT))
	{
		const text *on_abort = PG_GETARG_TEXT_PP(ARG_ON_ABORT);

		if (text_is(on_abort, "keep"))
			return false;
		if (text_is(on_abort, "refund"))
			return true;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized value of on_abort"),
			 errhint("Use 'keep' or 'refund'.")));
}

static void
check_columns(TupleDesc desc)
{
	if (desc->natts != OUT_COLUMNS)
		elog(ERROR, "unexpected number of columns in apikeys.verification");
}

/*
 * The columns of the function's result.  Its place in the type cache is
 * remembered for the statement; it is good until invalidations are accepted.
 */
static TupleDesc
result_columns(FmgrInfo *flinfo)
{
	TypeCacheEntry *type = flinfo->fn_extra;

	if (type == NULL || type->tupDesc == NULL)
	{
		type = lookup_type_cache(get_func_rettype(flinfo->fn_oid),
								 TYPECACHE_TUPDESC);
		if (type->tupDesc == NULL)
			elog(ERROR, "apikeys.verification is not a composite type");
		flinfo->fn_extra = type;
	}
	check_columns(type->tupDesc);
	return type->tupDesc;
}

/*
 * apikey_verify(key text, endpoint text, method text, ip_address inet,
 *				 cost bigint, permissions text, api_id text, tags text[],
 *				 on_abort text, charges jsonb) -> apikeys.verification
 *
 * Decide about a secret and consume "cost" (0 to 2^31 requests) if it is
 * valid.  Always answers one row.
 *
 * Errors: 22004 and 22023 for arguments, 0A000 for what is not supported, 25006
 * for a quota on a standby, 53000 if the worker does not keep up.
 */
Datum
apikey_verify(PG_FUNCTION_ARGS)
{
	RecordSpace record;
	Request		request;
	AkNamedCosts costs;
	Decision	decision;
	Datum		values[OUT_COLUMNS];
	bool		nulls[OUT_COLUMNS];

	request.refund = on_abort_arg(fcinfo);
	request.reservation = NULL;
	request.secret = fcinfo->args[ARG_KEY];
	request.ip_address = PG_ARGISNULL(ARG_IP_ADDRESS) ? NULL :
		PG_GETARG_INET_PP(ARG_IP_ADDRESS);
	request.cost = ak_cost_arg(fcinfo, ARG_COST);
	request.permissions = permissions_arg(fcinfo);
	request.api_id = text_arg(fcinfo, ARG_API_ID);
	request.costs = NULL;
	if (!PG_ARGISNULL(ARG_CHARGES))
	{
		ak_charges_read(PG_GETARG_DATUM(ARG_CHARGES), &costs);
		request.costs = &costs;
	}
	request.now = GetCurrentTimestamp();
	request.record = &record.record;
	ak_record_prepare(request.record, request.now, request.cost,
					  request.ip_address, fcinfo->args[ARG_ENDPOINT],
					  fcinfo->args[ARG_METHOD], fcinfo->args[ARG_TAGS]);

	ak_decide(&request, &decision);
	if (decision.outcome == AK_VALID)
		ak_current_remember(&decision.key, &decision.subject);
	ak_answer(&request, &decision, values, nulls);

	if (ak_hand_over_row(fcinfo, OUT_COLUMNS, values, nulls))
		return (Datum) 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(result_columns(fcinfo->flinfo),
													  values, nulls)));
}

/*
 * The same decision for other callers; what is decided about is in the current
 * memory context.  Errors: as apikey_verify(), but for arguments.
 */
void
ak_verify(const AkAsked *asked, AkDecided *decided)
{
	RecordSpace record;
	Request		request = {
		.secret = asked->secret,
		.ip_address = asked->ip_address,
		.cost = asked->cost,
		.permissions = asked->permissions,
		.api_id = asked->api_id,
		.now = GetCurrentTimestamp(),
		.record = &record.record
	};
	Decision   *decision = palloc(sizeof(Decision));

	ak_record_prepare(request.record, request.now, request.cost,
					  request.ip_address, asked->endpoint, asked->method,
					  (NullableDatum) {.isnull = true});
	ak_decide(&request, decision);
	if (decision->outcome == AK_VALID)
		ak_current_remember(&decision->key, &decision->subject);

	decided->outcome = decision->outcome;
	decided->now = request.now;
	decided->key = decision->key_is_known ? &decision->key : NULL;
	decided->subject = decision->key_is_known ? &decision->subject : NULL;
	decided->charge = decision->is_metered ? &decision->charge : NULL;
}

/*
 * apikey_verify_many(keys text[], endpoint text, method text,
 *					  ip_address inet) -> SETOF apikeys.verification
 *
 * Decide about many secrets, one row each, in the order given; each costs one
 * request.  Errors: 22004 and 22023 for the array, else as apikey_verify().
 */
Datum
apikey_verify_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext each;
	ArrayType  *keys;
	Datum	   *secrets;
	bool	   *are_null;
	int			n;

	if (PG_ARGISNULL(ARG_KEY))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("keys must not be null")));
	keys = PG_GETARG_ARRAYTYPE_P(ARG_KEY);
	if (ARR_NDIM(keys) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("keys must be an array of one dimension")));
	deconstruct_array(keys, TEXTOID, -1, false, TYPALIGN_INT, &secrets,
					  &are_null, &n);
	InitMaterializedSRF(fcinfo, 0);
	check_columns(result->setDesc);
	each = AllocSetContextCreate(CurrentMemoryContext, "apikeys verification",
								 ALLOCSET_DEFAULT_SIZES);

	for (int i = 0; i < n; i++)
	{
		RecordSpace record;
		Request		request = {.cost = 1};
		Decision	decision;
		Datum		values[OUT_COLUMNS];
		bool		nulls[OUT_COLUMNS];
		MemoryContext caller = MemoryContextSwitchTo(each);

		CHECK_FOR_INTERRUPTS();
		request.secret.value = secrets[i];
		request.secret.isnull = are_null[i];
		request.ip_address = PG_ARGISNULL(ARG_IP_ADDRESS) ? NULL :
			PG_GETARG_INET_PP(ARG_IP_ADDRESS);
		request.now = GetCurrentTimestamp();
		request.record = &record.record;
		ak_record_prepare(request.record, request.now, request.cost,
						  request.ip_address, fcinfo->args[ARG_ENDPOINT],
						  fcinfo->args[ARG_METHOD],
						  (NullableDatum) {.isnull = true});
		ak_decide(&request, &decision);
		ak_answer(&request, &decision, values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(each);
	}
	MemoryContextDelete(each);
	return (Datum) 0;
}

/*
 * apikeys.key_of_secret(key text) -> uuid
 *
 * The key that a secret belongs to, NULL if it is none's or the key is deleted,
 * be it by the sweep; meters nothing, records nothing.
 */
Datum
apikeys_key_of_secret(PG_FUNCTION_ARGS)
{
	uint8		digest[AK_DIGEST_LEN];
	AkKey		key;
	pg_uuid_t  *id;

	AcceptInvalidationMessages();
	if (!digest_of(fcinfo->args[0], digest) ||
		!ak_key_by_digest(digest, GetCurrentTimestamp(), &key) ||
		!key.nulls[AK_KEY_DELETED_AT])
		PG_RETURN_NULL();
	id = palloc(sizeof(pg_uuid_t));
	*id = key.id;
	PG_RETURN_UUID_P(id);
}
