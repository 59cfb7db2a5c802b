/*-------------------------------------------------------------------------
 *
 * flush_history.c
 *	  Make history durable.  Runs in a database's worker.
 *
 * What the buffer holds is written in one transaction, sorted as the index of
 * its table, with what it adds to the rollups; it leaves the buffer only after
 * the commit.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "worker.h"

typedef struct Collected
{
	const AkRecord **records;	/* sorted, those for the history first */
	int			n;
	int			nrecorded;		/* those for the history */
	int			capacity;
	int			rollup_counts;	/* that they add to the rollups */
} Collected;

static void
collect(const AkRecord *record, void *arg)
{
	Collected  *collected = arg;

	if (record->outcome == AK_VALID)
		ak_note_use(&record->key_id, record->timestamp);
	if (!record->touch_only)
		collected->nrecorded++;
	if (collected->n == collected->capacity)
	{
		collected->capacity *= 2;
		collected->records = repalloc_huge(collected->records,
										   collected->capacity * sizeof(AkRecord *));
	}
	collected->records[collected->n++] = record;
}

/* By day, so that partitions come one after another; then as their index. */
static int
compare_records(const void *a, const void *b)
{
	const AkRecord *x = *(const AkRecord *const *) a;
	const AkRecord *y = *(const AkRecord *const *) b;
	int64		day_x = x->timestamp / USECS_PER_DAY;
	int64		day_y = y->timestamp / USECS_PER_DAY;
	int			order;

	if (x->touch_only != y->touch_only)
		return x->touch_only ? 1 : -1;
	if (day_x != day_y)
		return day_x < day_y ? -1 : 1;
	order = memcmp(&x->key_id, &y->key_id, UUID_LEN);
	if (order != 0)
		return order;
	return x->timestamp < y->timestamp ? -1 : x->timestamp > y->timestamp;
}

static void
write_collected(void *arg)
{
	Collected  *collected = arg;

	if (collected->nrecorded > 0)
		ak_copy_history(collected->records, collected->nrecorded);
	collected->rollup_counts = ak_rollup_journal(collected->records,
												 collected->n);
}

/*
 * Move what the buffer holds into apikeys.requests, and what it adds to the
 * rollups into their journal.  It is taken out of the buffer only after the
 * commit.  False if the write has failed.
 */
bool
ak_flush_history(AkDatabase *db)
{
	Collected	collected = {.capacity = 1024};
	AkLanePosition ends[AK_LANES];

	db->history_urgent = false;
	pg_memory_barrier();
	collected.records = palloc(collected.capacity * sizeof(AkRecord *));
	for (int i = 0; i < AK_LANES; i++)
		ak_history_read(db, i, &ends[i], collect, &collected);
	if (collected.n > 0)
	{
		qsort(collected.records, collected.n, sizeof(AkRecord *),
			  compare_records);
		if (!ak_worker_transaction(write_collected, &collected))
		{
			pfree(collected.records);
			return false;
		}
	}
	for (int i = 0; i < AK_LANES; i++)
		ak_history_consume(db, i, &ends[i]);
	db->history_rows += collected.nrecorded;
	ak_rollup_noted(db, collected.rollup_counts);
	db->stalled = false;
	pfree(collected.records);
	ConditionVariableBroadcast(&db->changed);
	return true;
}
