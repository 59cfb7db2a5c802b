/*-------------------------------------------------------------------------
 *
 * lookup.c
 *	  Find the plans, users, apis and roles that apply to a key.
 *
 * Plans, users, apis and roles are remembered by the backend, a missing one
 * too, until ak_catalog_changes() says that one may have changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apikeys.h"

/* A backend remembers at most this many rows of most kinds. */
#define REMEMBERED_MAX 4096

/* Copy an id out of a row; empty for NULL. */
void
ak_copy_id(char id[AK_ID_LEN], Datum value, bool isnull)
{
	if (isnull)
		id[0] = '\0';
	else
	{
		const text *t = DatumGetTextPP(value);
		Size		length = VARSIZE_ANY_EXHDR(t);

		/* The tables' constraints keep ids shorter. */
		if (length >= AK_ID_LEN)
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("identifier is longer than %d bytes", AK_ID_LEN - 1)));
		memcpy(id, VARDATA_ANY(t), length);
		id[length] = '\0';
	}
}

/* ----- rows by their text id ----- */

typedef bool (*RowVisitor) (Relation rel, HeapTuple tuple, void *arg);

/*
 * Visit the rows whose first index column equals a text id, or with a NULL id
 * all of them, as a latest snapshot sees them, until the visitor says false.
 *
 * The relation is locked before the snapshot is taken, so that a change whose
 * invalidation has been accepted is seen.
 */
static void
visit_rows(Oid relid, Oid indexid, const char *column, const char *id,
		   RowVisitor visit, void *arg)
{
	Relation	rel = table_open(relid, AccessShareLock);
	SysScanDesc scan;
	ScanKeyData scankey;
	HeapTuple	tuple;

	if (id != NULL)
		ScanKeyEntryInitialize(&scankey, 0, get_attnum(relid, column),
							   BTEqualStrategyNumber, InvalidOid,
							   get_typcollation(TEXTOID), F_TEXTEQ,
							   CStringGetTextDatum(id));
	Assert(ActiveSnapshotSet());
	scan = systable_beginscan(rel, indexid, true, GetLatestSnapshot(),
							  id != NULL ? 1 : 0, &scankey);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		if (!visit(rel, tuple, arg))
			break;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static Datum
column_of(Relation rel, HeapTuple tuple, const char *name, bool *isnull)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"apikeys.%s\" does not exist",
						name, RelationGetRelationName(rel))));
	return heap_getattr(tuple, attnum, RelationGetDescr(rel), isnull);
}

/*
 * A memory of rows: entries begin with what they are found by, an id unless
 * key_size is given.  Emptied when the rows may have changed, or when it is
 * full.
 */
typedef struct Memory
{
	const char *name;
	Size		key_size;		/* 0: a text id */
	Size		entry_size;
	int			max;			/* entries; 0: as is usual */
	HTAB	   *table;
	MemoryContext context;
	uint64		changes;		/* as of which it holds */
} Memory;

static void *
remembered(Memory *memory, const void *key)
{
	if (memory->table != NULL && memory->changes == ak_catalog_changes())
		return hash_search(memory->table, key, HASH_FIND, NULL);
	return NULL;
}

/*
 * Make a memory ready to remember what was looked up as of "changes", taken
 * before the look-up: if something has changed since, the entry may have been
 * read too early, and is not found again.
 */
static void
make_ready(Memory *memory, uint64 changes)
{
	HASHCTL		ctl = {0};
	int			max = memory->max > 0 ? memory->max : REMEMBERED_MAX;

	if (memory->table != NULL && memory->changes == changes &&
		hash_get_num_entries(memory->table) < max)
		return;
	memory->table = NULL;
	if (memory->context != NULL)
		MemoryContextReset(memory->context);
	else
		memory->context = AllocSetContextCreate(TopMemoryContext,
												"apikeys rows",
												ALLOCSET_DEFAULT_SIZES);
	ctl.keysize = memory->key_size > 0 ? memory->key_size : AK_ID_LEN;
	ctl.entrysize = memory->entry_size;
	ctl.hcxt = memory->context;
	memory->table = hash_create(memory->name, 64, &ctl,
								HASH_ELEM | HASH_CONTEXT |
								(memory->key_size > 0 ? HASH_BLOBS : HASH_STRINGS));
	memory->changes = changes;
}

/* Remember an entry; what it points to is in the memory's context. */
static void *
remember(Memory *memory, const void *entry)
{
	void	   *place = hash_search(memory->table, entry, HASH_ENTER, NULL);

	memcpy(place, entry, memory->entry_size);
	return place;
}

/* Rates, in the memory of their owner. */
static AkRates
keep_rates(Memory *memory, const AkRates *rates)
{
	AkRates		kept = {.n = rates->n};

	if (rates->n > 0)
	{
		kept.rates = MemoryContextAlloc(memory->context,
										rates->n * sizeof(AkRate));
		memcpy(kept.rates, rates->rates, rates->n * sizeof(AkRate));
	}
	return kept;
}

/* The name of a database role; empty for NULL.  Longer ones are no role's. */
static void
copy_role(char role[NAMEDATALEN], Datum value, bool isnull)
{
	role[0] = '\0';
	if (!isnull)
		text_to_cstring_buffer(DatumGetTextPP(value), role, NAMEDATALEN);
}

/* ----- plans ----- */

static Memory plans = {.name = "apikeys plans",.entry_size = sizeof(AkPlan)};

static bool
visit_plan(Relation rel, HeapTuple tuple, void *arg)
{
	AkPlan	   *plan = arg;
	bool		isnull;
	bool		not_deleted;
	Datum		value;

	value = column_of(rel, tuple, "is_active", &isnull);
	(void) column_of(rel, tuple, "deleted_at", &not_deleted);
	plan->is_deleted = !not_deleted;
	plan->is_usable = DatumGetBool(value) && not_deleted;
	value = column_of(rel, tuple, "name", &isnull);
	plan->name = TextDatumGetCString(value);
	value = column_of(rel, tuple, "max_requests", &isnull);
	plan->max_requests = isnull ? -1 : DatumGetInt64(value);
	value = column_of(rel, tuple, "request_period", &isnull);
	if (!ak_period_parse(TextDatumGetCString(value), &plan->period))
		elog(ERROR, "unexpected request_period of plan \"%s\"", plan->id);
	value = column_of(rel, tuple, "key_lifetime", &isnull);
	plan->has_lifetime = !isnull;
	if (!isnull)
		plan->lifetime = *DatumGetIntervalP(value);
	value = column_of(rel, tuple, "max_keys_per_user", &isnull);
	plan->max_keys_per_user = isnull ? -1 : DatumGetInt32(value);
	value = column_of(rel, tuple, "http_role", &isnull);
	copy_role(plan->http_role, value, isnull);
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
	AkPlan	   *known = remembered(&plans, id);

	if (known == NULL)
	{
		AkPlan		fresh = {.max_requests = 0};

		strlcpy(fresh.id, id, AK_ID_LEN);
		visit_rows(catalog->plans, catalog->plans_pkey, "id", id, visit_plan,
				   &fresh);
		ak_rates_of(AK_OWNER_PLAN, CStringGetTextDatum(id),
					CurrentMemoryContext, &fresh.rates);
		make_ready(&plans, changes);
		if (fresh.name != NULL)
			fresh.name = MemoryContextStrdup(plans.context, fresh.name);
		fresh.rates = keep_rates(&plans, &fresh.rates);
		known = remember(&plans, &fresh);
	}
	*plan = *known;
	if (plan->name != NULL)
		plan->name = pstrdup(plan->name);
	return plan->name != NULL;
}

/* ----- users ----- */

/*
 * There may be many, most without a row: what is remembered of one takes as
 * much memory as it needs.  Of two whose ids have the same hash, one is.
 */
#define USERS_MAX 16384

typedef struct KnownUser
{
	uint64		id_hash;
	const char *id;
	const char *plan_id;
	bool		exists;			/* else the rest is unset */
	bool		is_usable;
	pg_uuid_t	subject_id;
	TimestampTz custom_start;
	AkCredits  *credits;		/* NULL: not limited */
	AkRates		rates;
} KnownUser;

static Memory users = {.name = "apikeys users",.key_size = sizeof(uint64),.entry_size = sizeof(KnownUser),.max = USERS_MAX};

/* Whether there are any users, as of these changes. */
static uint64 any_users_changes = 0;
static bool any_users;

static bool
visit_any(Relation rel, HeapTuple tuple, void *arg)
{
	*(bool *) arg = true;
	return false;
}

/* Many databases have none: then no id need be looked up. */
static bool
are_there_users(const AkCatalog *catalog, uint64 changes)
{
	if (any_users_changes != changes)
	{
		bool		found = false;

		visit_rows(catalog->users, catalog->users_pkey, NULL, NULL, visit_any,
				   &found);
		any_users = found;
		any_users_changes = changes;
	}
	return any_users;
}

static uint64
hash_of_id(const char *id)
{
	return hash_bytes_extended((const unsigned char *) id, strlen(id), 0);
}

static const KnownUser *
remembered_user(const char *id)
{
	uint64		hash = hash_of_id(id);
	const KnownUser *known = remembered(&users, &hash);

	return known != NULL && strcmp(known->id, id) == 0 ? known : NULL;
}

static void
remember_user(const AkUser *user, uint64 changes)
{
	KnownUser	known = {
		.id_hash = hash_of_id(user->id),
		.exists = user->exists,
		.is_usable = user->is_usable,
		.subject_id = user->subject_id,
		.custom_start = user->custom_start
	};

	make_ready(&users, changes);
	known.id = MemoryContextStrdup(users.context, user->id);
	known.plan_id = user->plan_id[0] == '\0' ? "" :
		MemoryContextStrdup(users.context, user->plan_id);
	if (user->credits.is_limited)
	{
		known.credits = MemoryContextAlloc(users.context, sizeof(AkCredits));
		*known.credits = user->credits;
	}
	known.rates = keep_rates(&users, &user->rates);
	remember(&users, &known);
}

static void
recall_user(const KnownUser *known, AkUser *user)
{
	user->exists = known->exists;
	user->is_usable = known->is_usable;
	strlcpy(user->plan_id, known->plan_id, AK_ID_LEN);
	user->subject_id = known->subject_id;
	user->custom_start = known->custom_start;
	if (known->credits != NULL)
		user->credits = *known->credits;
	else
		user->credits.is_limited = false;
	user->rates = known->rates;
}

static void
read_refill(Relation rel, HeapTuple tuple, AkCredits *credits)
{
	bool		isnull;
	Datum		value = column_of(rel, tuple, "refill_amount", &isnull);

	if (isnull)
		return;
	credits->refill_amount = DatumGetInt64(value);
	value = column_of(rel, tuple, "refill_every", &isnull);
	credits->refill_every = *DatumGetIntervalP(value);
	value = column_of(rel, tuple, "refill_since", &isnull);
	credits->refill_since = DatumGetTimestampTz(value);
	value = column_of(rel, tuple, "refill_day", &isnull);
	credits->refill_day = isnull ? 0 : DatumGetInt32(value);
}

static bool
visit_user(Relation rel, HeapTuple tuple, void *arg)
{
	AkUser	   *user = arg;
	bool		isnull;
	bool		not_deleted;
	Datum		value;

	user->exists = true;
	value = column_of(rel, tuple, "is_disabled", &isnull);
	(void) column_of(rel, tuple, "deleted_at", &not_deleted);
	user->is_usable = !DatumGetBool(value) && not_deleted;
	value = column_of(rel, tuple, "plan_id", &isnull);
	ak_copy_id(user->plan_id, value, isnull);
	value = column_of(rel, tuple, "custom_start", &isnull);
	user->custom_start = isnull ? AK_CALENDAR : DatumGetTimestampTz(value);
	value = column_of(rel, tuple, "subject_id", &isnull);
	user->subject_id = *DatumGetUUIDP(value);
	value = column_of(rel, tuple, "credits", &isnull);
	user->credits.is_limited = !isnull;
	if (!isnull)
	{
		user->credits.granted = DatumGetInt64(value);
		read_refill(rel, tuple, &user->credits);
	}
	return false;
}

/* A user's row, if there is one; it may be disabled or deleted. */
bool
ak_user_by_id(const char *id, AkUser *user)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	const KnownUser *known;

	memset(user, 0, sizeof(AkUser));
	strlcpy(user->id, id, AK_ID_LEN);
	user->custom_start = AK_CALENDAR;
	if (!are_there_users(catalog, changes))
		return false;
	known = remembered_user(id);
	if (known != NULL)
	{
		recall_user(known, user);
		return user->exists;
	}
	visit_rows(catalog->users, catalog->users_pkey, "id", id, visit_user, user);
	if (user->exists)
		ak_rates_of(AK_OWNER_USER, CStringGetTextDatum(id),
					CurrentMemoryContext, &user->rates);
	remember_user(user, changes);
	return user->exists;
}

/* ----- apis ----- */

static Memory apis = {.name = "apikeys apis",.entry_size = sizeof(AkApi)};

static bool
visit_api(Relation rel, HeapTuple tuple, void *arg)
{
	AkApi	   *api = arg;
	bool		isnull;
	Datum		value;

	api->exists = true;
	value = column_of(rel, tuple, "default_plan_id", &isnull);
	ak_copy_id(api->default_plan_id, value, isnull);
	value = column_of(rel, tuple, "default_prefix", &isnull);
	if (!isnull)
		strlcpy(api->default_prefix, TextDatumGetCString(value),
				sizeof(api->default_prefix));
	value = column_of(rel, tuple, "http_role", &isnull);
	copy_role(api->http_role, value, isnull);
	return false;
}

bool
ak_api_by_id(const char *id, AkApi *api)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	AkApi	   *known = remembered(&apis, id);

	if (known == NULL)
	{
		AkApi		fresh = {.exists = false};

		strlcpy(fresh.id, id, AK_ID_LEN);
		visit_rows(catalog->apis, catalog->apis_pkey, "id", id, visit_api,
				   &fresh);
		make_ready(&apis, changes);
		known = remember(&apis, &fresh);
	}
	*api = *known;
	return api->exists;
}

/* ----- roles ----- */

static Memory roles = {.name = "apikeys roles",.entry_size = sizeof(AkRole)};

static bool
visit_role(Relation rel, HeapTuple tuple, void *arg)
{
	AkRole	   *role = arg;
	bool		isnull;
	Datum		value;

	role->exists = true;
	value = column_of(rel, tuple, "permissions", &isnull);
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
	known = remembered(&roles, name);
	if (known == NULL)
	{
		AkRole		fresh = {.exists = false};

		strlcpy(fresh.name, name, AK_ID_LEN);
		visit_rows(catalog->roles, catalog->roles_pkey, "name", name,
				   visit_role, &fresh);
		make_ready(&roles, changes);
		if (fresh.exists)
		{
			MemoryContext caller = MemoryContextSwitchTo(roles.context);

			fresh.permissions = copy_array(fresh.permissions);
			MemoryContextSwitchTo(caller);
		}
		known = remember(&roles, &fresh);
	}
	*role = *known;
	if (role->exists)
		role->permissions = copy_array(role->permissions);
	return role->exists;
}

/* ----- whose limit applies ----- */

/*
 * The plan that applies: the key's own, else its user's, else its api's, else
 * none (empty id: unlimited, counted by calendar month).  *is_user says that
 * it is the user's, and so shared by the user's keys.
 */
void
ak_applicable_plan(const char *plan_id, const AkUser *user, const char *api_id,
				   AkPlan *plan, bool *is_user)
{
	AkApi		api;

	*is_user = false;
	if (plan_id[0] == '\0' && user->exists && user->plan_id[0] != '\0')
	{
		*is_user = true;
		plan_id = user->plan_id;
	}
	if (plan_id[0] == '\0' && ak_api_by_id(api_id, &api))
		plan_id = api.default_plan_id;

	if (plan_id[0] != '\0')
	{
		ak_plan_by_id(plan_id, plan);
		return;
	}
	memset(plan, 0, sizeof(AkPlan));
	plan->is_usable = true;
	plan->max_requests = -1;
	plan->max_keys_per_user = -1;
	plan->period = AK_MONTH;
}

/* Whose count a request with this key goes to, and under which plan. */
void
ak_subject_of_key(const AkKey *key, AkSubject *subject)
{
	memset(subject, 0, sizeof(AkSubject));
	subject->user.custom_start = AK_CALENDAR;
	if (key->user_id[0] != '\0')
		ak_user_by_id(key->user_id, &subject->user);
	ak_applicable_plan(key->plan_id, &subject->user, key->api_id,
					   &subject->plan, &subject->is_user);
	subject->subject_id = subject->is_user ? subject->user.subject_id : key->id;
	subject->anchor = subject->user.exists ?
		subject->user.custom_start : AK_CALENDAR;
}

/* The same for what a user's keys share. */
void
ak_subject_of_user(const AkUser *user, AkSubject *subject)
{
	bool		has_plan;

	memset(subject, 0, sizeof(AkSubject));
	subject->user = *user;
	ak_applicable_plan("", user, "", &subject->plan, &has_plan);
	subject->is_user = true;
	subject->subject_id = user->subject_id;
	subject->anchor = user->custom_start;
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

	(void) column_of(rel, tuple, "deleted_at", &not_deleted);
	expires_at = column_of(rel, tuple, "expires_at", &isnull);
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

	visit_rows(catalog->keys, catalog->keys_user_id_idx, "user_id", user_id,
			   visit_user_key, &live);
	return live.count;
}
