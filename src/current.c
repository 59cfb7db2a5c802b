/*-------------------------------------------------------------------------
 *
 * current.c
 *	  Who is calling: the key that was verified in this transaction.
 *
 * The key that was VALID last is remembered in the backend's memory until the
 * transaction ends, so that a row security policy need not look it up.  No SQL
 * can set it but by presenting a secret.  It follows savepoints: one that is
 * rolled back takes the keys verified in it along, and the key from before is
 * the current one again.
 *
 * Remembering is on the path of each verification: it copies a few hundred
 * bytes into memory that is kept from one to the next, and allocates nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikey_current);
PG_FUNCTION_INFO_V1(apikey_current_user);
PG_FUNCTION_INFO_V1(apikey_current_key);
PG_FUNCTION_INFO_V1(apikey_current_permissions);
PG_FUNCTION_INFO_V1(apikey_current_metadata);

/* The columns of variable length that are remembered. */
static const AkKeyColumn kept_columns[] = {
	AK_KEY_NAME, AK_KEY_PERMISSIONS, AK_KEY_METADATA
};

enum
{
	KEPT_NAME,
	KEPT_PERMISSIONS,
	KEPT_METADATA
};

/* Columns of apikeys.current_key. */
enum
{
	OUT_KEY_ID,
	OUT_API_ID,
	OUT_NAME,
	OUT_USER_ID,
	OUT_PLAN_ID,
	OUT_PERMISSIONS,
	OUT_METADATA,
	OUT_EXPIRES_AT,
	OUT_COLUMNS
};

typedef struct Caller
{
	struct Caller *before;		/* of an outer transaction level */
	int			level;			/* nesting of the one that verified it */
	pg_uuid_t	key_id;
	bool		expires;
	TimestampTz expires_at;
	char		api_id[AK_ID_LEN];
	char		user_id[AK_ID_LEN]; /* empty: none */
	char		plan_id[AK_ID_LEN]; /* the one that applies; empty: none */
	Datum		kept[lengthof(kept_columns)];	/* into the space */
	char	   *space;
	Size		size;
} Caller;

/* More than this is not kept beyond the transaction. */
#define SPACE_KEPT 8192

static Caller first;			/* used again by each transaction */
static Caller *current = NULL;

static void
release_space(Caller *caller)
{
	if (caller->space != NULL)
		pfree(caller->space);
	caller->space = NULL;
	caller->size = 0;
}

static void
discard(Caller *caller)
{
	if (caller != &first)
	{
		release_space(caller);
		pfree(caller);
	}
	else if (caller->size > SPACE_KEPT)
		release_space(caller);
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			while (current != NULL)
			{
				Caller	   *done = current;

				current = done->before;
				discard(done);
			}
			break;
		default:
			break;
	}
}

/* A savepoint that is gone: its caller is forgotten, or the parent's now. */
static void
subxact_callback(SubXactEvent event, SubTransactionId mine,
				 SubTransactionId parent, void *arg)
{
	int			level = GetCurrentTransactionNestLevel();

	if (current == NULL || current->level < level)
		return;
	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		Caller	   *done = current;

		current = done->before;
		discard(done);
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		Caller	   *before = current->before;

		current->level = level - 1;
		if (before != NULL && before->level == level - 1)
		{
			current->before = before->before;
			discard(before);
		}
	}
}

/* The place for what this level verifies. */
static Caller *
place(void)
{
	static bool registered = false;
	int			level = GetCurrentTransactionNestLevel();
	Caller	   *caller;

	if (current != NULL && current->level == level)
		return current;
	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		registered = true;
	}
	caller = current == NULL ? &first :
		MemoryContextAllocZero(TopMemoryContext, sizeof(Caller));
	caller->level = level;
	caller->before = current;
	return caller;
}

/*
 * Remember the key of a valid request.  Values that are stored out of line are
 * fetched now: their row may be gone later.
 */
void
ak_current_remember(const AkKey *key, const AkSubject *subject)
{
	struct varlena *values[lengthof(kept_columns)];
	Size		needed = 0;
	Caller	   *caller;
	char	   *at;

	for (int i = 0; i < lengthof(kept_columns); i++)
	{
		values[i] = (struct varlena *) DatumGetPointer(key->values[kept_columns[i]]);
		if (VARATT_IS_EXTERNAL(values[i]))
			values[i] = detoast_external_attr(values[i]);
		needed += MAXALIGN(VARSIZE_ANY(values[i]));
	}

	caller = place();
	if (caller->size < needed)
	{
		/* An error here must not leave half of one caller, half of another. */
		char	   *space = MemoryContextAlloc(TopMemoryContext,
											   Max(needed, 512));

		release_space(caller);
		caller->space = space;
		caller->size = Max(needed, 512);
	}
	at = caller->space;
	for (int i = 0; i < lengthof(kept_columns); i++)
	{
		memcpy(at, values[i], VARSIZE_ANY(values[i]));
		caller->kept[i] = PointerGetDatum(at);
		at += MAXALIGN(VARSIZE_ANY(values[i]));
	}
	caller->key_id = key->id;
	caller->expires = !key->nulls[AK_KEY_EXPIRES_AT];
	if (caller->expires)
		caller->expires_at = DatumGetTimestampTz(key->values[AK_KEY_EXPIRES_AT]);
	strlcpy(caller->api_id, key->api_id, AK_ID_LEN);
	strlcpy(caller->user_id, key->user_id, AK_ID_LEN);
	strlcpy(caller->plan_id, subject->plan.id, AK_ID_LEN);
	current = caller;
}

/* A copy: the next verification writes over it. */
static Datum
kept(int i)
{
	return datumCopy(current->kept[i], false, -1);
}

static pg_uuid_t *
key_id(void)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	*id = current->key_id;
	return id;
}

static void
set_text(Datum *values, bool *nulls, int column, const char *value)
{
	nulls[column] = value[0] == '\0';
	if (!nulls[column])
		values[column] = CStringGetTextDatum(value);
}

/*
 * apikey_current() -> apikeys.current_key
 *
 * The key that is calling; NULL if none was verified in this transaction, as
 * for the functions below.
 */
Datum
apikey_current(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[OUT_COLUMNS] = {0};
	bool		nulls[OUT_COLUMNS] = {0};

	if (current == NULL)
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != OUT_COLUMNS)
		elog(ERROR, "unexpected columns of apikeys.current_key");
	values[OUT_KEY_ID] = UUIDPGetDatum(&current->key_id);
	set_text(values, nulls, OUT_API_ID, current->api_id);
	values[OUT_NAME] = current->kept[KEPT_NAME];
	set_text(values, nulls, OUT_USER_ID, current->user_id);
	set_text(values, nulls, OUT_PLAN_ID, current->plan_id);
	values[OUT_PERMISSIONS] = current->kept[KEPT_PERMISSIONS];
	values[OUT_METADATA] = current->kept[KEPT_METADATA];
	nulls[OUT_EXPIRES_AT] = !current->expires;
	values[OUT_EXPIRES_AT] = TimestampTzGetDatum(current->expires_at);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}

/* apikey_current_user() -> text */
Datum
apikey_current_user(PG_FUNCTION_ARGS)
{
	if (current == NULL || current->user_id[0] == '\0')
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(current->user_id));
}

/* apikey_current_key() -> uuid */
Datum
apikey_current_key(PG_FUNCTION_ARGS)
{
	if (current == NULL)
		PG_RETURN_NULL();
	PG_RETURN_UUID_P(key_id());
}

/* apikey_current_permissions() -> text[] */
Datum
apikey_current_permissions(PG_FUNCTION_ARGS)
{
	if (current == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(kept(KEPT_PERMISSIONS));
}

/* apikey_current_metadata() -> jsonb */
Datum
apikey_current_metadata(PG_FUNCTION_ARGS)
{
	if (current == NULL)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(kept(KEPT_METADATA));
}
