/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Make counts durable.  Runs in a database's worker.
 *
 * A row of apikeys.usage is written when somebody asks for a higher ceiling, on
 * first use, and else once in ten intervals at most, however often its subject
 * is used meanwhile: each write leaves a dead version of the row behind, and an
 * old snapshot keeps them all.
 *
 * A ceiling in memory is lowered before the row is written and raised after
 * the commit, so that what is admitted is durable at any moment.  The
 * transaction that moves ceilings touches apikeys.usage alone, and adds to the
 * ledger: clients wait for it, so it must never wait for one of theirs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "worker.h"

/* Rows of one transaction. */
#define BATCH 2000

/*
 * A row that nobody asks for is written this long after its last write, in
 * passes (half an interval each).
 */
#define QUIET_PASSES 20

/* A count that the worker looks after until it is clean. */
typedef struct Tracked
{
	uint32		entry;
	int64		seen;			/* charged at the last pass; -1: not yet */
} Tracked;

struct AkFlush
{
	AkDatabase *db;
	uint32		pass;			/* number of the pass, for last_write; never 0 */
	bool		is_crowded;		/* idle entries shall become clean at once */
	bool		missed_some;	/* that were asked for: look at all */
	Tracked    *tracked;
	int			ntracked;
	int			capacity;
};

/* A row to write, as its entry was. */
typedef struct Row
{
	uint32		entry;
	MeterKey	key;
	int64		charged;
	int64		lost;
	int64		ceiling;
	uint32		refilled;
	uint8		changes;
	bool		asked;			/* somebody has asked for it */
} Row;

typedef struct Batch
{
	AkDatabase *db;
	uint32		pass;
	Row		   *rows;
	int			n;
} Batch;

static void
track(AkFlush *flush, uint32 entry)
{
	if (flush->ntracked == flush->capacity)
	{
		flush->capacity *= 2;
		flush->tracked = repalloc_huge(flush->tracked,
									   flush->capacity * sizeof(Tracked));
	}
	flush->tracked[flush->ntracked++] = (Tracked)
	{
		.entry = entry, .seen = -1
	};
}

static int
compare_tracked(const void *a, const void *b)
{
	uint32		x = ((const Tracked *) a)->entry;
	uint32		y = ((const Tracked *) b)->entry;

	return (x > y) - (x < y);
}

/*
 * Look after what backends have put on the list, but for the first "known" that
 * are looked after already, in the order of entries.
 */
static void
track_listed(AkFlush *flush, int known)
{
	uint32		i = ak_meter_take_dirty(flush->db);

	while (i != AK_NONE)
	{
		Tracked		sought = {.entry = i};

		if (bsearch(&sought, flush->tracked, known, sizeof(Tracked),
					compare_tracked) == NULL)
			track(flush, i);
		i = ak_shared->entries[i].next_dirty;
	}
}

/*
 * Begin to look after a database's counts: what a worker before this one may
 * have left, and later what backends put on the list.
 */
AkFlush *
ak_flush_create(AkDatabase *db)
{
	AkFlush    *flush = MemoryContextAllocZero(TopMemoryContext, sizeof(AkFlush));

	flush->db = db;
	flush->pass = 1;
	flush->missed_some = true;
	flush->capacity = 64;
	flush->tracked = MemoryContextAlloc(TopMemoryContext,
										flush->capacity * sizeof(Tracked));

	/*
	 * An entry that is dirty is on the list, or was taken from it by a worker
	 * that died.  The meter is not open yet, but what is given back by a
	 * transaction that aborts is marked meanwhile: so some that are found are
	 * on the list too, and some on the list are not found.
	 */
	Assert(!db->open);
	ak_meter_barrier();
	for (int i = 0; i < ak_max_tracked_keys; i++)
	{
		MeterEntry *entry = &ak_shared->entries[i];
		MeterKey	key = entry->key;
		LWLock	   *lock;
		bool		dirty;

		if (!entry->in_use || key.generation != db->generation)
			continue;
		lock = ak_partition_lock(&key);
		LWLockAcquire(lock, LW_SHARED);
		dirty = entry->in_use && entry->dirty &&
			memcmp(&entry->key, &key, sizeof(key)) == 0;
		LWLockRelease(lock);
		if (dirty)
			track(flush, i);
	}
	track_listed(flush, flush->ntracked);
	db->ntracked = flush->ntracked;
	return flush;
}

/* The ceiling that an entry's callers have asked for. */
static int64
raised_ceiling(const MeterEntry *entry)
{
	if (ak_is_unlimited(&entry->key, entry->limit))
		return entry->charged + entry->wanted;
	return Min(entry->charged + Max(ak_meter_step(entry), entry->wanted),
			   Max(entry->limit, entry->charged));
}

typedef enum Due
{
	DUE_NOTHING,				/* the row says it all */
	DUE_LATER,
	DUE_NOW
} Due;

/*
 * Whether the row of an entry that nobody waits for may be left as it is for
 * now: until ten intervals after its last write.  (AK_LAST_WRITE_MAX passes
 * after that it seems to have just been written; then it waits once more.)  The
 * caller holds the entry's partition.
 */
static bool
may_wait(const AkFlush *flush, const MeterEntry *entry, const Tracked *tracked)
{
	uint32		age = (flush->pass + AK_LAST_WRITE_MAX - entry->last_write) %
		AK_LAST_WRITE_MAX;

	if (entry->last_write == 0 || entry->written == AK_UNWRITTEN ||
		entry->changes != entry->changes_written)
		return false;
	if (flush->is_crowded && entry->charged == tracked->seen)
		return false;
	return age < QUIET_PASSES;
}

/* Whether an entry's row is as it would be written. */
static bool
has_row(const MeterEntry *entry, int64 ceiling)
{
	return entry->charged == entry->written && ceiling == entry->ceiling &&
		entry->changes == entry->changes_written;
}

/*
 * Decide what to write about an entry.  The caller holds its partition.
 */
static Due
plan_row(const AkFlush *flush, MeterEntry *entry, const Tracked *tracked,
		 AkPass pass, Row *row)
{
	int64		ceiling;

	if (entry->key.period == AK_REQUEST)
	{
		row->entry = entry - ak_shared->entries;
		row->key = entry->key;
		row->charged = entry->charged;
		row->changes = entry->changes;
		if (entry->charged == entry->written)
			return DUE_NOTHING;
		return pass == AK_PASS_URGENT ? DUE_LATER : DUE_NOW;
	}
	if (pass == AK_PASS_CLOSING)
		ceiling = entry->charged;
	else if (entry->raise_asked)
		ceiling = raised_ceiling(entry);
	else if (pass == AK_PASS_URGENT)
		return DUE_LATER;
	else
		ceiling = entry->charged + ak_meter_headroom(&entry->key, entry->limit);

	if (has_row(entry, ceiling))
	{
		bool		asked = entry->raise_asked;

		/* A ceiling that was asked for is to be lowered again. */
		entry->wanted = 0;
		entry->raise_asked = false;
		return asked && pass != AK_PASS_CLOSING ? DUE_LATER : DUE_NOTHING;
	}
	if (pass == AK_PASS_INTERVAL && !entry->raise_asked &&
		may_wait(flush, entry, tracked))
		return DUE_LATER;

	/* Who still wants more after this will say so again. */
	entry->wanted = 0;

	/* Lower at once, raise after the commit. */
	entry->ceiling = Min(entry->ceiling, ceiling);
	row->entry = entry - ak_shared->entries;
	row->key = entry->key;
	row->charged = entry->charged;
	row->lost = entry->lost;
	row->ceiling = ceiling;
	row->refilled = entry->key.period == AK_CREDITS ? entry->refilled : 0;
	row->changes = entry->changes;
	row->asked = entry->raise_asked;
	return DUE_NOW;
}

/* Columns of rows that are written, as arrays. */
static const Oid usage_types[] = {
	UUIDOID, BOOLOID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID,
	TIMESTAMPTZOID
};
static const Oid request_id_types[] = {UUIDOID, INT8OID, TIMESTAMPTZOID};

#define COLUMNS lengthof(usage_types)	/* beside the incarnation */

#define ROWS_WRITTEN \
	" FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)" \
	" AS r (subject_id, is_user, period, period_start, current_usage, charged," \
	" ceiling, refilled_at)"

/*
 * What the meter itself has added to credits goes into the ledger: refills, and
 * what a crash cost.  It is the change of current_usage - charged.
 */
static void
write_ledger(Oid *types, Datum *args)
{
	if (SPI_execute_with_args("INSERT INTO apikeys.ledger (subject_id, subject,"
							  " kind, operation, amount, actor)"
							  " SELECT r.subject_id, CASE WHEN r.is_user THEN 'user' ELSE 'key' END,"
							  " 'credits', CASE WHEN u.refilled_at IS DISTINCT FROM"
							  " nullif(r.refilled_at, '-infinity')"
							  " THEN 'refill' ELSE 'correction' END,"
							  " r.current_usage - r.charged"
							  " - coalesce(u.current_usage - u.charged, 0), NULL"
							  ROWS_WRITTEN
							  " LEFT JOIN apikeys.usage u ON u.subject_id = r.subject_id"
							  " AND u.period = r.period AND u.period_start = r.period_start"
							  " WHERE r.period = 'credits' AND r.current_usage - r.charged"
							  " <> coalesce(u.current_usage - u.charged, 0)",
							  COLUMNS, types, args, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write apikeys.ledger");
}

static TimestampTz
refilled_at(const Row *row)
{
	return row->refilled == 0 ? DT_NOBEGIN : row->refilled * USECS_PER_SEC;
}

/* What requests with an id were charged; 0 is given back. */
static void
write_request_ids(const Batch *batch)
{
	Datum	   *columns[lengthof(request_id_types)];
	Datum		args[lengthof(request_id_types)];
	Oid			types[lengthof(request_id_types)];
	int			n = 0;

	for (int c = 0; c < lengthof(request_id_types); c++)
		columns[c] = palloc(batch->n * sizeof(Datum));
	for (int i = 0; i < batch->n; i++)
	{
		Row		   *row = &batch->rows[i];

		if (row->key.period != AK_REQUEST)
			continue;
		columns[0][n] = UUIDPGetDatum(&row->key.subject_id);
		columns[1][n] = Int64GetDatum(row->key.period_start);
		columns[2][n++] = TimestampTzGetDatum(row->charged == 0 ? DT_NOBEGIN : row->charged);
	}
	if (n == 0)
		return;
	for (int c = 0; c < lengthof(request_id_types); c++)
		args[c] = ak_array_of(request_id_types[c], columns[c], n, &types[c]);
	if (SPI_execute_with_args("INSERT INTO apikeys.request_ids AS r"
							  " SELECT * FROM unnest($1, $2, $3)"
							  " ON CONFLICT (key_id, id_hash) DO UPDATE"
							  " SET charged_at = excluded.charged_at",
							  lengthof(types), types, args, NULL, false,
							  0) != SPI_OK_INSERT)
		elog(ERROR, "could not write apikeys.request_ids");
}

/*
 * Only this worker adds rows: none comes between the look for one and its
 * insertion.
 */
static void
write_rows(void *arg)
{
	Batch	   *batch = arg;
	int			n = 0;
	bool		has_credits = false;
	Datum	   *columns[COLUMNS];
	Datum		args[COLUMNS + 1];
	Oid			types[COLUMNS + 1];

	batch->db->last_written = Max(batch->db->last_written,
								  GetCurrentTransactionStartTimestamp());
	for (int c = 0; c < COLUMNS; c++)
		columns[c] = palloc(batch->n * sizeof(Datum));
	for (int i = 0; i < batch->n; i++)
	{
		Row		   *row = &batch->rows[i];

		if (row->key.period == AK_REQUEST)
			continue;
		columns[0][n] = UUIDPGetDatum(&row->key.subject_id);
		columns[1][n] = BoolGetDatum(row->key.is_user);
		columns[2][n] = CStringGetTextDatum(ak_period_name(row->key.period));
		columns[3][n] = TimestampTzGetDatum(row->key.period_start);
		columns[4][n] = Int64GetDatum(row->charged - row->lost);
		columns[5][n] = Int64GetDatum(row->charged);
		columns[6][n] = Int64GetDatum(row->ceiling);
		columns[7][n] = TimestampTzGetDatum(refilled_at(row));
		has_credits |= row->key.period == AK_CREDITS;
		n++;
	}
	write_request_ids(batch);
	if (n == 0)
		return;
	for (int c = 0; c < COLUMNS; c++)
		args[c] = ak_array_of(usage_types[c], columns[c], n, &types[c]);
	args[COLUMNS] = UUIDPGetDatum(&batch->db->incarnation);
	types[COLUMNS] = UUIDOID;

	if (has_credits)
		write_ledger(types, args);
	ak_plan_by_index();
	if (SPI_execute_with_args("MERGE INTO apikeys.usage AS u"
							  " USING (SELECT *" ROWS_WRITTEN
							  " ORDER BY r.subject_id, r.period, r.period_start) w"
							  " ON u.subject_id = w.subject_id"
							  " AND u.period = w.period AND u.period_start = w.period_start"
							  " WHEN MATCHED THEN UPDATE"
							  " SET current_usage = w.current_usage, charged = w.charged,"
							  " ceiling = w.ceiling, incarnation = $9, updated_at = now(),"
							  " refilled_at = nullif(w.refilled_at, '-infinity')"
							  " WHEN NOT MATCHED THEN"
							  " INSERT (subject_id, subject, period, period_start,"
							  " current_usage, charged, ceiling, incarnation, updated_at,"
							  " refilled_at)"
							  " VALUES (w.subject_id, CASE WHEN w.is_user THEN 'user' ELSE 'key' END,"
							  " w.period, w.period_start, w.current_usage, w.charged,"
							  " w.ceiling, $9, now(), nullif(w.refilled_at, '-infinity'))",
							  COLUMNS + 1, types, args, NULL, false, 0) != SPI_OK_MERGE)
		elog(ERROR, "could not write apikeys.usage");
}

/* The batch is durable: tell its entries. */
static void
publish(const Batch *batch)
{
	for (int i = 0; i < batch->n; i++)
	{
		const Row  *row = &batch->rows[i];
		MeterEntry *entry = &ak_shared->entries[row->entry];
		LWLock	   *lock = ak_partition_lock(&row->key);

		LWLockAcquire(lock, LW_EXCLUSIVE);
		entry->written = row->charged;
		entry->changes_written = row->changes;
		entry->last_write = batch->pass;
		if (entry->changes == row->changes && row->key.period != AK_REQUEST)
		{
			entry->ceiling = row->ceiling;
			entry->raise_asked = false;
		}
		LWLockRelease(lock);
		if (row->key.period == AK_REQUEST)
			continue;
		batch->db->usage_rows++;
		if (row->asked)
			batch->db->ceilings_raised++;
	}
	ConditionVariableBroadcast(&batch->db->changed);
}

/*
 * The rows may be as they were, while ceilings in memory are lower by now: count
 * that as a change, so that a row does not pass for written once nothing else
 * tells the two apart.
 */
static void
keep_due(const Batch *batch)
{
	for (int i = 0; i < batch->n; i++)
	{
		const Row  *row = &batch->rows[i];
		MeterEntry *entry = &ak_shared->entries[row->entry];
		LWLock	   *lock = ak_partition_lock(&row->key);

		if (row->key.period == AK_REQUEST)
			continue;
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (entry->changes == entry->changes_written)
			entry->changes++;
		LWLockRelease(lock);
	}
}

/*
 * Write a batch and tell its entries.  False if the write has failed.  SIGTERM
 * may have cancelled the wait for a standby: then nothing may be admitted on
 * the ground of what was written, and the closing writes it again.
 */
static bool
write_batch(Batch *batch, AkPass pass)
{
	bool		ok = batch->n == 0 || ak_worker_durable_transaction(write_rows, batch);

	if (ShutdownRequestPending && pass != AK_PASS_CLOSING)
		ok = false;
	if (ok)
		publish(batch);
	else
		keep_due(batch);
	batch->n = 0;
	return ok;
}

/*
 * Whether others find no room, or may not find any for all the counts that the
 * workers look after: what they look after is not evicted.
 */
static bool
is_crowded(const AkFlush *flush)
{
	uint64		n = flush->ntracked;
	int64		while_wanted = 2 * ak_flush_interval * INT64CONST(1000);

	if (ak_shared->no_room_at != 0 &&
		ak_elapsed() - ak_shared->no_room_at < while_wanted)
		return true;
	for (int i = 0; i < ak_max_databases; i++)
		if (&ak_shared->databases[i] != flush->db)
			n += ak_shared->databases[i].ntracked;
	return n > ak_max_tracked_keys / 2;
}

/* Pass over all counts that are looked after.  False if a write has failed. */
static bool
write_due(AkFlush *flush, AkPass pass, Batch *batch)
{
	int			kept = 0;
	bool		ok = true;

	for (int i = 0; i < flush->ntracked; i++)
	{
		Tracked		tracked = flush->tracked[i];
		MeterEntry *entry = &ak_shared->entries[tracked.entry];

		/* An entry keeps its key while it is dirty. */
		LWLock	   *lock = ak_partition_lock(&entry->key);
		Due			due = DUE_LATER;

		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (ok)
			due = plan_row(flush, entry, &tracked, pass, &batch->rows[batch->n]);
		if (due == DUE_NOTHING)
			entry->dirty = false;
		if (pass != AK_PASS_URGENT)
			tracked.seen = entry->charged;
		LWLockRelease(lock);

		if (due != DUE_NOTHING)
			flush->tracked[kept++] = tracked;
		if (due == DUE_NOW && ++batch->n == BATCH)
			ok = write_batch(batch, pass);
	}
	flush->ntracked = kept;
	return ok && write_batch(batch, pass);
}

static int
compare_entries(const void *a, const void *b)
{
	uint32		x = *(const uint32 *) a;
	uint32		y = *(const uint32 *) b;

	return (x > y) - (x < y);
}

/*
 * Write what was asked for, however many counts there are.  Each stays among
 * those that are looked after.
 */
static bool
write_asked(AkFlush *flush, uint32 *asked, int n, Batch *batch)
{
	qsort(asked, n, sizeof(uint32), compare_entries);
	for (int i = 0; i < n; i++)
	{
		MeterEntry *entry = &ak_shared->entries[asked[i]];
		MeterKey	key = entry->key;
		LWLock	   *lock = ak_partition_lock(&key);

		if (i > 0 && asked[i] == asked[i - 1])
			continue;
		LWLockAcquire(lock, LW_EXCLUSIVE);

		/* It may have been written meanwhile, and be another's by now. */
		if (entry->in_use && entry->dirty && entry->raise_asked &&
			memcmp(&entry->key, &key, sizeof(key)) == 0 &&
			key.generation == flush->db->generation &&
			plan_row(flush, entry, NULL, AK_PASS_URGENT,
					 &batch->rows[batch->n]) == DUE_NOW)
			batch->n++;
		LWLockRelease(lock);
	}
	return write_batch(batch, AK_PASS_URGENT);
}

StaticAssertDecl(AK_ASKED_MAX <= BATCH, "what is asked for fits into a batch");

/*
 * Write the counts that are due.  False if a write has failed: nothing is lost,
 * it is tried again at the next pass.
 */
bool
ak_flush_counts(AkFlush *flush, AkPass pass)
{
	Batch		batch = {.db = flush->db};
	uint32		asked[AK_ASKED_MAX];
	uint32		nasked;
	bool		ok;

	flush->db->urgent = false;
	pg_memory_barrier();
	nasked = ak_meter_take_asked(flush->db, asked);
	track_listed(flush, 0);
	if (pass == AK_PASS_INTERVAL)
		flush->pass = flush->pass % AK_LAST_WRITE_MAX + 1;
	flush->is_crowded = is_crowded(flush);
	batch.pass = flush->pass;
	batch.rows = palloc(BATCH * sizeof(Row));
	if (pass == AK_PASS_URGENT && nasked <= AK_ASKED_MAX && !flush->missed_some)
		ok = write_asked(flush, asked, nasked, &batch);
	else
		ok = write_due(flush, pass, &batch);
	flush->missed_some = !ok;
	flush->db->ntracked = flush->ntracked;
	pfree(batch.rows);
	return ok;
}
