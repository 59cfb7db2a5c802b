/*-------------------------------------------------------------------------
 *
 * remember.c
 *	  Read small tables of the extension, and remember their rows.
 *
 * A backend remembers rows, and that there is none, until ak_catalog_changes()
 * says that one may have changed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "remember.h"

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

/*
 * Visit the rows whose first index column equals a text id, or with a NULL id
 * all of them, as a latest snapshot sees them, until the visitor says false.
 *
 * The relation is locked before the snapshot is taken, so that a change whose
 * invalidation has been accepted is seen.
 */
void
ak_visit_rows(Oid relid, Oid indexid, const char *column, const char *id,
			  AkRowVisitor visit, void *arg)
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

/* A column by its name; the row's value may point into the tuple. */
Datum
ak_column_of(Relation rel, HeapTuple tuple, const char *name, bool *isnull)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(rel), name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"apikeys.%s\" does not exist",
						name, RelationGetRelationName(rel))));
	return heap_getattr(tuple, attnum, RelationGetDescr(rel), isnull);
}

static bool
is_key_of(const AkMemory *memory, const void *entry, const void *key)
{
	return memory->key_size > 0 ? memcmp(entry, key, memory->key_size) == 0 :
		strcmp(entry, key) == 0;
}

/* What is remembered under a key, or NULL; good until the next look-up. */
void *
ak_remembered(AkMemory *memory, const void *key)
{
	if (memory->table == NULL || memory->changes != ak_catalog_changes())
		return NULL;
	if (memory->last == NULL || !is_key_of(memory, memory->last, key))
		memory->last = hash_search(memory->table, key, HASH_FIND, NULL);
	return memory->last;
}

/*
 * Make a memory ready to remember what was looked up as of "changes", taken
 * before the look-up: if something has changed since, the entry may have been
 * read too early, and is not found again.
 */
void
ak_memory_prepare(AkMemory *memory, uint64 changes)
{
	HASHCTL		ctl = {0};
	int			max = memory->max > 0 ? memory->max : REMEMBERED_MAX;

	if (memory->table != NULL && memory->changes == changes &&
		hash_get_num_entries(memory->table) < max)
		return;
	memory->table = NULL;
	memory->last = NULL;
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
void *
ak_remember(AkMemory *memory, const void *entry)
{
	void	   *place = hash_search(memory->table, entry, HASH_ENTER, NULL);

	memcpy(place, entry, memory->entry_size);
	return place;
}

/* Rates, in the memory of their owner. */
AkRates
ak_keep_rates(AkMemory *memory, const AkRates *rates)
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
void
ak_copy_role(char role[NAMEDATALEN], Datum value, bool isnull)
{
	role[0] = '\0';
	if (!isnull)
		text_to_cstring_buffer(DatumGetTextPP(value), role, NAMEDATALEN);
}
