/*-------------------------------------------------------------------------
 *
 * flush_history.c
 *	  Make history durable.  Runs in a database's worker.
 *
 * What the buffer holds is written sorted as the index of its table, with what it
 * adds to the rollups, in one transaction or, where it is much, in parts: who
 * waits for room in the buffer, or for a ceiling, waits for no more than that.
 * It leaves the buffer only after the commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "worker.h"

/* A record, and what it is sorted by: nothing else is read meanwhile. */
typedef struct Sorted
{
	int32		day;			/* of the history; AFTER_DAYS: not for it */
	AkOutcome	outcome;
	uint64		key_id[2];		/* as numbers: in the order of uuid */
	TimestampTz timestamp;
	const AkRecord *record;
} Sorted;

#define AFTER_DAYS PG_INT32_MAX

typedef struct Collected
{
	Sorted	   *records;
	int			n;
	int			nrecorded;		/* those for the history; they come first */
	int			capacity;
	int			rollup_counts;	/* that they add to the rollups */
} Collected;

static void
collect(const AkRecord *record, void *arg)
{
	Collected  *collected = arg;
	Sorted	   *sorted;

	if (!record->touch_only)
		collected->nrecorded++;
	if (collected->n == collected->capacity)
	{
		collected->capacity *= 2;
		collected->records = repalloc_huge(collected->records,
										   collected->capacity * sizeof(Sorted));
	}
	sorted = &collected->records[collected->n++];
	sorted->day = record->touch_only ? AFTER_DAYS :
		record->timestamp / USECS_PER_DAY;
	sorted->outcome = record->outcome;
	memcpy(sorted->key_id, &record->key_id, UUID_LEN);
	sorted->key_id[0] = pg_ntoh64(sorted->key_id[0]);
	sorted->key_id[1] = pg_ntoh64(sorted->key_id[1]);
	sorted->timestamp = record->timestamp;
	sorted->record = record;
}

/* By day, so that partitions come one after another; then as their index. */
static int
compare(const Sorted *x, const Sorted *y)
{
	if (x->day != y->day)
		return x->day < y->day ? -1 : 1;
	if (x->key_id[0] != y->key_id[0])
		return x->key_id[0] < y->key_id[0] ? -1 : 1;
	if (x->key_id[1] != y->key_id[1])
		return x->key_id[1] < y->key_id[1] ? -1 : 1;
	return x->timestamp < y->timestamp ? -1 : x->timestamp > y->timestamp;
}

#define ST_SORT sort
#define ST_ELEMENT_TYPE Sorted
#define ST_COMPARE(x, y) compare(x, y)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* When each key was last used: the last of its records that says VALID. */
static void
note_uses(const Collected *collected)
{
	const Sorted *last = NULL;

	for (int i = 0; i < collected->n; i++)
	{
		const Sorted *next = &collected->records[i];

		if (next->outcome != AK_VALID)
			continue;
		if (last != NULL && memcmp(last->key_id, next->key_id, UUID_LEN) != 0)
			ak_note_use(&last->record->key_id, last->timestamp);
		last = next;
	}
	if (last != NULL)
		ak_note_use(&last->record->key_id, last->timestamp);
}

static void
write_collected(void *arg)
{
	Collected  *collected = arg;
	const AkRecord **records = MemoryContextAllocHuge(CurrentMemoryContext,
													  collected->n * sizeof(AkRecord *));

	for (int i = 0; i < collected->n; i++)
		records[i] = collected->records[i].record;
	if (collected->nrecorded > 0)
		ak_insert_history(records, collected->nrecorded);
	collected->rollup_counts = ak_journal_write(records, collected->n);
}

/* Begin to write all that the buffer holds by now. */
void
ak_flush_history_begin(AkDatabase *db, AkHistoryFlush *flush)
{
	db->history_urgent = false;
	pg_memory_barrier();
	for (int i = 0; i < AK_LANES; i++)
		ak_history_end(db, i, &flush->ends[i]);
	flush->done = false;
}

/*
 * Move the next part of it into apikeys.requests, and what that adds to the
 * rollups into their journal.  It is taken out of the buffer only after the
 * commit.  False if the write has failed.
 */
bool
ak_flush_history_part(AkDatabase *db, AkHistoryFlush *flush)
{
	Collected	collected = {.capacity = 1024};
	AkLanePosition stops[AK_LANES];
	uint32		nchunks = ak_history_part();

	collected.records = palloc(collected.capacity * sizeof(Sorted));
	for (int i = 0; i < AK_LANES; i++)
		ak_history_read(db, i, &flush->ends[i], &nchunks, &stops[i], collect,
						&collected);
	if (collected.n > 0)
	{
		sort(collected.records, collected.n);
		note_uses(&collected);
		if (!ak_worker_transaction(write_collected, &collected))
		{
			pfree(collected.records);
			return false;
		}
	}
	for (int i = 0; i < AK_LANES; i++)
	{
		if (stops[i].chunk == flush->ends[i].chunk &&
			stops[i].offset == flush->ends[i].offset)
			flush->ends[i].chunk = AK_NONE; /* all of it */
		ak_history_consume(db, i, &stops[i]);
	}
	flush->done = nchunks > 0;
	db->history_rows += collected.nrecorded;
	ak_rollup_noted(db, collected.rollup_counts);
	db->stalled = false;
	pfree(collected.records);
	ConditionVariableBroadcast(&db->changed);
	return true;
}
