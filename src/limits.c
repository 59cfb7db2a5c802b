/*-------------------------------------------------------------------------
 *
 * limits.c
 *	  Which limits a request is held to.
 *
 * The first is always the quota of the plan that applies (unlimited if there
 * is none).  Then come the credits of the key or else of its user, if these are
 * not unlimited.  Then come the rates of the key, its user and the plan, by name: a
 * key's own rate stands in for its user's of the same name, the user's for the
 * plan's.  A plan's rates go to the same subject as its quota.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_is_rate);

/* What the quota is called among the limits. */
#define QUOTA_NAME "quota"

/* And the credits. */
#define CREDITS_NAME "credits"

/* Columns of apikeys.limits, in the order of the install script. */
enum
{
	LIMIT_ID = 1,
	LIMIT_PLAN_ID,
	LIMIT_USER_ID,
	LIMIT_KEY_ID,
	LIMIT_NAME,
	LIMIT_AMOUNT,
	LIMIT_PERIOD,
	LIMIT_BURST,
	LIMIT_AUTO_APPLY,
	LIMIT_CREATED_AT
};

/* ----- reading apikeys.limits ----- */

static void
read_rate(Relation rel, HeapTuple tuple, AkRate *rate)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		isnull;
	int64		amount = DatumGetInt64(heap_getattr(tuple, LIMIT_AMOUNT, desc, &isnull));
	Interval   *period = DatumGetIntervalP(heap_getattr(tuple, LIMIT_PERIOD, desc, &isnull));
	int64		burst = DatumGetInt64(heap_getattr(tuple, LIMIT_BURST, desc, &isnull));

	text_to_cstring_buffer(DatumGetTextPP(heap_getattr(tuple, LIMIT_NAME, desc, &isnull)),
						   rate->name, AK_LIMIT_NAME_LEN);
	rate->auto_apply = DatumGetBool(heap_getattr(tuple, LIMIT_AUTO_APPLY, desc, &isnull));

	rate->created_at = DatumGetTimestampTz(heap_getattr(tuple, LIMIT_CREATED_AT, desc, &isnull));

	/* The table's trigger has checked it: nothing fails open. */
	if (!ak_rate_make(amount, period, burst, rate))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("limit \"%s\" cannot be computed with", rate->name)));
}

/*
 * The rates that one plan, user or key sets, in the memory context given.
 */
void
ak_rates_of(AkOwner owner, Datum id, MemoryContext context, AkRates *rates)
{
	const AkCatalog *catalog = ak_catalog();
	Relation	rel = table_open(catalog->limits, AccessShareLock);
	Oid			index;
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (owner == AK_OWNER_KEY)
	{
		index = catalog->limits_key_id_key;
		ScanKeyInit(&scankey, LIMIT_KEY_ID, BTEqualStrategyNumber, F_UUID_EQ,
					id);
	}
	else
	{
		bool		is_plan = owner == AK_OWNER_PLAN;

		index = is_plan ? catalog->limits_plan_id_key : catalog->limits_user_id_key;
		ScanKeyEntryInitialize(&scankey, 0,
							   is_plan ? LIMIT_PLAN_ID : LIMIT_USER_ID,
							   BTEqualStrategyNumber, InvalidOid,
							   get_typcollation(TEXTOID), F_TEXTEQ, id);
	}
	rates->n = 0;
	rates->rates = NULL;
	Assert(ActiveSnapshotSet());
	scan = systable_beginscan(rel, index, true, GetLatestSnapshot(), 1,
							  &scankey);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (rates->rates == NULL)
			rates->rates = MemoryContextAlloc(context,
											  AK_RATES_MAX * sizeof(AkRate));
		if (rates->n == AK_RATES_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("too many limits for one owner")));
		read_rate(rel, tuple, &rates->rates[rates->n++]);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

/*
 * apikeys.is_rate(amount bigint, period interval, burst bigint) -> boolean
 *
 * Whether a rate can be computed with; see ak_rate_make().
 */
Datum
apikeys_is_rate(PG_FUNCTION_ARGS)
{
	AkRate		rate;

	PG_RETURN_BOOL(ak_rate_make(PG_GETARG_INT64(0), PG_GETARG_INTERVAL_P(1),
								PG_GETARG_INT64(2), &rate));
}

/* ----- the limits of a request ----- */

static AkNamedCost *
named_cost(AkNamedCosts *costs, const char *name)
{
	for (int i = 0; costs != NULL && i < costs->n; i++)
		if (strcmp(costs->costs[i].name, name) == 0)
		{
			costs->costs[i].found = true;
			return &costs->costs[i];
		}
	return NULL;
}

/* Whether a rate of this name has been decided on: the first one counts. */
static bool
is_listed(const AkCharge *charge, const char *name)
{
	for (int i = 0; i < charge->nlimits; i++)
		if (strcmp(charge->limits[i].name, name) == 0)
			return true;
	for (int i = 0; i < charge->nskipped; i++)
		if (strcmp(charge->skipped[i], name) == 0)
			return true;
	return false;
}

static void
add_rates(AkCharge *charge, const AkRates *rates, const pg_uuid_t *subject_id,
		  bool is_user, int64 cost, AkNamedCosts *costs, bool all)
{
	for (int i = 0; i < rates->n; i++)
	{
		const AkRate *rate = &rates->rates[i];
		AkNamedCost *named;
		AkLimit    *limit;

		if (is_listed(charge, rate->name))
			continue;
		named = named_cost(costs, rate->name);
		if (!rate->auto_apply && named == NULL && !all)
		{
			charge->skipped[charge->nskipped++] = rate->name;
			continue;
		}
		limit = &charge->limits[charge->nlimits++];
		memset(limit, 0, sizeof(AkLimit));
		limit->key = charge->limits[0].key;
		limit->key.subject_id = *subject_id;
		limit->key.is_user = is_user;
		ak_rate_key(&limit->key, rate->name);
		limit->rate = *rate;
		limit->name = rate->name;
		limit->amount = rate->burst;
		limit->cost = named != NULL ? named->cost : cost;
	}
}

static void
credits_of_key(const AkKey *key, AkCredits *credits)
{
	memset(credits, 0, sizeof(AkCredits));
	credits->is_limited = !key->nulls[AK_KEY_CREDITS];
	if (!credits->is_limited)
		return;
	credits->granted = DatumGetInt64(key->values[AK_KEY_CREDITS]);
	if (key->nulls[AK_KEY_REFILL_AMOUNT])
		return;
	credits->refill_amount = DatumGetInt64(key->values[AK_KEY_REFILL_AMOUNT]);
	credits->refill_every = *DatumGetIntervalP(key->values[AK_KEY_REFILL_EVERY]);
	credits->refill_since = DatumGetTimestampTz(key->values[AK_KEY_REFILL_SINCE]);
	if (!key->nulls[AK_KEY_REFILL_DAY])
		credits->refill_day = DatumGetInt32(key->values[AK_KEY_REFILL_DAY]);
}

/*
 * Make a limit of the credits of a key or a user, as of a moment.
 */
void
ak_credits_limit(AkLimit *limit, const AkCredits *credits,
				 const pg_uuid_t *subject_id, bool is_user, int64 cost,
				 TimestampTz now)
{
	AkSpan		refill;

	memset(limit, 0, sizeof(AkLimit));
	ak_meter_key(&limit->key, ak_catalog(), subject_id, is_user, AK_CREDITS,
				 DT_NOBEGIN);
	limit->name = CREDITS_NAME;
	limit->amount = credits->granted;
	limit->cost = cost;
	limit->refill_next = DT_NOEND;
	if (ak_refill_at(credits, now, &refill))
	{
		limit->refill_amount = credits->refill_amount;
		limit->refill_next = refill.end;
		if (refill.start > credits->refill_since)
			limit->refill_due = ak_refill_mark(refill.start);
	}
}

/* The key's own credits stand in for its user's. */
static void
add_credits(AkCharge *charge, const AkKey *key, const AkSubject *subject,
			int64 cost, AkNamedCosts *costs, TimestampTz clock)
{
	AkNamedCost *named = named_cost(costs, CREDITS_NAME);
	AkCredits	credits = {.is_limited = false};

	if (named != NULL)
		cost = named->cost;
	if (key != NULL)
		credits_of_key(key, &credits);
	if (!credits.is_limited && !subject->user.credits.is_limited)
		return;
	if (credits.is_limited)
		ak_credits_limit(&charge->limits[charge->nlimits++], &credits, &key->id,
						 false, cost, clock);
	else
		ak_credits_limit(&charge->limits[charge->nlimits++],
						 &subject->user.credits, &subject->user.subject_id,
						 true, cost, clock);
}

/* The credits among the limits, or NULL. */
const AkLimit *
ak_charge_credits(const AkCharge *charge)
{
	if (charge->nlimits > 1 && ak_limit_is_credits(&charge->limits[1]))
		return &charge->limits[1];
	return NULL;
}

/*
 * List the limits that a request with a key is held to, and what it costs each:
 * "cost", unless "costs" (may be NULL) names the limit.  With "all", limits that
 * do not apply by themselves are listed too.
 *
 * Errors: 22023 if costs name a limit that there is not.
 */
void
ak_charge_prepare(AkCharge *charge, const AkKey *key,
				  const AkSubject *subject, int64 cost, AkNamedCosts *costs,
				  bool all, TimestampTz now)
{
	const AkCatalog *catalog = ak_catalog();
	AkNamedCost *named = named_cost(costs, QUOTA_NAME);
	AkLimit    *quota = &charge->limits[0];
	TimestampTz clock = ak_database_clock(catalog->db, now);

	charge->now = now;
	ak_period_at(subject->plan.period, subject->anchor, clock, &charge->span);
	memset(quota, 0, sizeof(AkLimit));
	ak_meter_key(&quota->key, catalog, &subject->subject_id, subject->is_user,
				 subject->plan.period, charge->span.start);
	quota->name = QUOTA_NAME;
	quota->amount = subject->plan.max_requests;
	quota->cost = named != NULL ? named->cost : cost;
	charge->nlimits = 1;
	charge->nskipped = 0;
	charge->refundable = false;
	charge->by_hand = false;
	charge->repeated = false;
	charge->has_request = key != NULL && costs != NULL &&
		costs->request_id[0] != '\0';
	if (charge->has_request)
		ak_request_key(&charge->request, catalog, &key->id, costs->request_id);
	add_credits(charge, key, subject, cost, costs, clock);

	if (key != NULL && DatumGetBool(key->values[AK_KEY_HAS_LIMITS]))
	{
		AkRates		rates;

		ak_rates_of(AK_OWNER_KEY, UUIDPGetDatum(&key->id),
					CurrentMemoryContext, &rates);
		add_rates(charge, &rates, &key->id, false, cost, costs, all);
	}
	if (subject->user.exists)
		add_rates(charge, &subject->user.rates, &subject->user.subject_id,
				  true, cost, costs, all);
	add_rates(charge, &subject->plan.rates, &subject->subject_id,
			  subject->is_user, cost, costs, all);

	for (int i = 0; costs != NULL && i < costs->n; i++)
		if (!costs->costs[i].found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown limit \"%s\"", costs->costs[i].name),
					 errhint("The limits of a key are those of apikey_usage()."),
					 err_generic_string(PG_DIAG_COLUMN_NAME, "charges")));
}

/* Whether a request costs nothing: then it is only looked at. */
bool
ak_charge_is_free(const AkCharge *charge)
{
	for (int i = 0; i < charge->nlimits; i++)
		if (charge->limits[i].cost > 0)
			return false;
	return true;
}
