/*-------------------------------------------------------------------------
 *
 * lookup.c
 *	  Find the plans, apis and roles that apply to a key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "remember.h"

/* ----- plans ----- */

static AkMemory plans = {.name = "apikeys plans",.entry_size = sizeof(AkPlan)};

static bool
visit_plan(Relation rel, HeapTuple tuple, void *arg)
{
	AkPlan	   *plan = arg;
	bool		isnull;
	bool		not_deleted;
	Datum		value;

	value = ak_column_of(rel, tuple, "is_active", &isnull);
	(void) ak_column_of(rel, tuple, "deleted_at", &not_deleted);
	plan->is_deleted = !not_deleted;
	plan->is_usable = DatumGetBool(value) && not_deleted;
	value = ak_column_of(rel, tuple, "name", &isnull);
	plan->name = TextDatumGetCString(value);
	value = ak_column_of(rel, tuple, "max_requests", &isnull);
	plan->max_requests = isnull ? -1 : DatumGetInt64(value);
	value = ak_column_of(rel, tuple, "request_period", &isnull);
	if (!ak_period_parse(TextDatumGetCString(value), &plan->period))
		elog(ERROR, "unexpected request_period of plan \"%s\"", plan->id);
	value = ak_column_of(rel, tuple, "key_lifetime", &isnull);
	plan->has_lifetime = !isnull;
	if (!isnull)
		plan->lifetime = *DatumGetIntervalP(value);
	value = ak_column_of(rel, tuple, "max_keys_per_user", &isnull);
	plan->max_keys_per_user = isnull ? -1 : DatumGetInt32(value);
	value = ak_column_of(rel, tuple, "http_role", &isnull);
	ak_copy_role(plan->http_role, value, isnull);
	return false;
}

/*
 * A plan, deleted and inactive ones included.  False if there is none: *plan
 * is then an unusable one of that id.
 */
bool
ak_plan_by_id(const char *id, AkPlan *plan)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	AkPlan	   *known = ak_remembered(&plans, id);

	if (known == NULL)
	{
		AkPlan		fresh = {.max_requests = 0};

		strlcpy(fresh.id, id, AK_ID_LEN);
		ak_visit_rows(catalog->plans, catalog->plans_pkey, "id", id, visit_plan,
					  &fresh);
		ak_rates_of(AK_OWNER_PLAN, CStringGetTextDatum(id),
					CurrentMemoryContext, &fresh.rates);
		ak_memory_prepare(&plans, changes);
		if (fresh.name != NULL)
			fresh.name = MemoryContextStrdup(plans.context, fresh.name);
		fresh.rates = ak_keep_rates(&plans, &fresh.rates);
		known = ak_remember(&plans, &fresh);
	}
	*plan = *known;
	if (plan->name != NULL)
		plan->name = pstrdup(plan->name);
	return plan->name != NULL;
}

/* ----- apis ----- */

static AkMemory apis = {.name = "apikeys apis",.entry_size = sizeof(AkApi)};

static bool
visit_api(Relation rel, HeapTuple tuple, void *arg)
{
	AkApi	   *api = arg;
	bool		isnull;
	Datum		value;

	api->exists = true;
	value = ak_column_of(rel, tuple, "default_plan_id", &isnull);
	ak_copy_id(api->default_plan_id, value, isnull);
	value = ak_column_of(rel, tuple, "default_prefix", &isnull);
	if (!isnull)
		strlcpy(api->default_prefix, TextDatumGetCString(value),
				sizeof(api->default_prefix));
	value = ak_column_of(rel, tuple, "http_role", &isnull);
	ak_copy_role(api->http_role, value, isnull);
	return false;
}

bool
ak_api_by_id(const char *id, AkApi *api)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	AkApi	   *known = ak_remembered(&apis, id);

	if (known == NULL)
	{
		AkApi		fresh = {.exists = false};

		strlcpy(fresh.id, id, AK_ID_LEN);
		ak_visit_rows(catalog->apis, catalog->apis_pkey, "id", id, visit_api,
					  &fresh);
		ak_memory_prepare(&apis, changes);
		known = ak_remember(&apis, &fresh);
	}
	*api = *known;
	return api->exists;
}

/* ----- roles ----- */

static AkMemory roles = {.name = "apikeys roles",.entry_size = sizeof(AkRole)};

static bool
visit_role(Relation rel, HeapTuple tuple, void *arg)
{
	AkRole	   *role = arg;
	bool		isnull;
	Datum		value;

	role->exists = true;
	value = ak_column_of(rel, tuple, "permissions", &isnull);
	role->permissions = DatumGetArrayTypePCopy(value);
	return false;
}

static ArrayType *
copy_array(const ArrayType *array)
{
	ArrayType  *copy = palloc(VARSIZE(array));

	memcpy(copy, array, VARSIZE(array));
	return copy;
}

/* A role, with a copy of its permissions.  False if there is none. */
bool
ak_role_by_name(const char *name, AkRole *role)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	AkRole	   *known;

	/* No role has such a name, though a key's row may. */
	if (strlen(name) >= AK_ID_LEN)
		return false;
	known = ak_remembered(&roles, name);
	if (known == NULL)
	{
		AkRole		fresh = {.exists = false};

		strlcpy(fresh.name, name, AK_ID_LEN);
		ak_visit_rows(catalog->roles, catalog->roles_pkey, "name", name,
					  visit_role, &fresh);
		ak_memory_prepare(&roles, changes);
		if (fresh.exists)
		{
			MemoryContext caller = MemoryContextSwitchTo(roles.context);

			fresh.permissions = copy_array(fresh.permissions);
			MemoryContextSwitchTo(caller);
		}
		known = ak_remember(&roles, &fresh);
	}
	*role = *known;
	if (role->exists)
		role->permissions = copy_array(role->permissions);
	return role->exists;
}

/* ----- keys of a user ----- */

typedef struct LiveKeys
{
	int			count;
	int			enough;
	TimestampTz now;
} LiveKeys;

static bool
visit_user_key(Relation rel, HeapTuple tuple, void *arg)
{
	LiveKeys   *live = arg;
	bool		isnull;
	bool		not_deleted;
	Datum		expires_at;

	(void) ak_column_of(rel, tuple, "deleted_at", &not_deleted);
	expires_at = ak_column_of(rel, tuple, "expires_at", &isnull);
	if (not_deleted && (isnull || DatumGetTimestampTz(expires_at) > live->now))
		live->count++;
	return live->count < live->enough;
}

/*
 * How many keys of a user are neither deleted nor expired, as of now and not
 * of the transaction's snapshot; counts no further than "enough".
 */
int
ak_count_live_keys(const char *user_id, int enough)
{
	const AkCatalog *catalog = ak_catalog();
	LiveKeys	live = {.enough = enough,.now = GetCurrentTimestamp()};

	ak_visit_rows(catalog->keys, catalog->keys_user_id_idx, "user_id", user_id,
				  visit_user_key, &live);
	return live.count;
}
