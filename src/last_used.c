/*-------------------------------------------------------------------------
 *
 * last_used.c
 *	  Keep apikeys.keys.last_used_at, coarsely.  Runs in a database's worker.
 *
 * A key's row is updated when it is used for the first time and then at most
 * once in apikeys.last_used_interval, so that a hot key does not rewrite its
 * row at every flush.  Rows that somebody has locked, or changes meanwhile, are
 * passed over, and tried again a little later, or when the worker leaves.
 *
 * A page has room for a few new versions of its rows, and gets it back from a
 * transaction that is over.  Where it has none the update is not HOT, and makes
 * an entry in each index of the table.  So, if there are many rows to update,
 * each flush takes a part of them, as chance would have it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/ilist.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "worker.h"

/* The worker remembers at most this many keys, in 72 bytes each, or so. */
#define REMEMBERED_MAX 500000

/* When to try again rows that were locked. */
#define RETRY_TIME (10 * USECS_PER_SEC)

/* More updates than this are done in parts, by the last byte of the key's id. */
#define FEW 1000
#define PARTS 8

typedef struct Use
{
	pg_uuid_t	key_id;
	TimestampTz used;
	TimestampTz written;		/* 0: not by this worker */
	int64		not_before;		/* by ak_elapsed(): its row was locked */
	slist_node	node;			/* in pending_uses, if it is pending */
	bool		pending;
} Use;

static HTAB *uses = NULL;
static slist_head pending_uses = SLIST_STATIC_INIT(pending_uses);
static int	npending = 0;
static int	npassed_over = 0;	/* of these, not to be tried yet */
static int64 retry_at = PG_INT64_MAX;	/* the first of them; by ak_elapsed() */

/* What one transaction writes. */
typedef struct Batch
{
	Use		  **uses;
	bool	   *passed_over;	/* of each: its row is locked */
	int			n;
} Batch;

static void
put_pending(Use *use)
{
	use->pending = true;
	slist_push_head(&pending_uses, &use->node);
	npending++;
}

/* Note that a key was used. */
void
ak_note_use(const pg_uuid_t *key_id, TimestampTz at)
{
	bool		found;
	Use		   *use;

	if (uses == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(pg_uuid_t),.entrysize = sizeof(Use),.hcxt = TopMemoryContext};

		uses = hash_create("apikeys uses", 1024, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	use = hash_search(uses, key_id, HASH_ENTER, &found);
	if (!found)
	{
		use->used = use->written = 0;
		use->not_before = 0;
		use->pending = false;
	}
	use->used = Max(use->used, at);
	if (!use->pending &&
		use->used - use->written >= ak_last_used_interval * USECS_PER_SEC)
		put_pending(use);
}

/* Take from the pending uses those of a part that may be tried, or all. */
static void
take_pending(Batch *batch, int part, bool all)
{
	bool		few = npending <= FEW;
	int64		now = ak_elapsed();
	slist_mutable_iter iter;

	batch->uses = palloc(npending * sizeof(Use *));
	batch->passed_over = palloc0(npending * sizeof(bool));
	batch->n = 0;
	npassed_over = 0;
	retry_at = PG_INT64_MAX;
	slist_foreach_modify(iter, &pending_uses)
	{
		Use		   *use = slist_container(Use, node, iter.cur);

		if (!all && use->not_before > now)
		{
			npassed_over++;
			retry_at = Min(retry_at, use->not_before);
			continue;
		}
		if (!all && !few && use->key_id.data[UUID_LEN - 1] % PARTS != part)
			continue;
		slist_delete_current(&iter);
		use->pending = false;
		batch->uses[batch->n++] = use;
	}
	npending -= batch->n;
}

static int
compare_uses(const void *a, const void *b)
{
	return memcmp(&(*(Use *const *) a)->key_id, &(*(Use *const *) b)->key_id,
				  UUID_LEN);
}

/* A key's row is to be updated.  Parameters: keys, times, and the interval. */
#define IS_DUE \
	" (l.last_used_at IS NULL" \
	" OR l.last_used_at <= r.used - make_interval(secs => $3))"

/* Which of the keys are due though the update has been: they are locked. */
static void
find_passed_over(Batch *batch, Oid *types, Datum *args)
{
	int			next = 0;

	if (SPI_execute_with_args("SELECT r.id FROM unnest($1, $2) AS r (id, used)"
							  " JOIN apikeys.keys l ON l.id = r.id"
							  " WHERE" IS_DUE " ORDER BY r.id",
							  3, types, args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not look for locked keys");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		const pg_uuid_t *id = DatumGetUUIDP(ak_returned(i, 1, NULL));

		while (memcmp(&batch->uses[next]->key_id, id, UUID_LEN) != 0)
			next++;
		batch->passed_over[next] = true;
	}
}

/* In the order of the keys, so that neighbours in index and table are met. */
static void
write_uses(void *arg)
{
	Batch	   *batch = arg;
	Datum	   *ids = palloc(batch->n * sizeof(Datum));
	Datum	   *times = palloc(batch->n * sizeof(Datum));
	Datum		args[3];
	Oid			types[3];

	qsort(batch->uses, batch->n, sizeof(Use *), compare_uses);
	for (int i = 0; i < batch->n; i++)
	{
		ids[i] = UUIDPGetDatum(&batch->uses[i]->key_id);
		times[i] = TimestampTzGetDatum(batch->uses[i]->used);
	}
	args[0] = ak_array_of(UUIDOID, ids, batch->n, &types[0]);
	args[1] = ak_array_of(TIMESTAMPTZOID, times, batch->n, &types[1]);
	args[2] = Float8GetDatum(ak_last_used_interval);
	types[2] = FLOAT8OID;

	/* Losing this in a crash costs nothing. */
	ak_set_locally("synchronous_commit", "off");
	ak_plan_by_index();
	if (SPI_execute_with_args("UPDATE apikeys.keys k SET last_used_at = u.used"
							  " FROM (SELECT l.ctid AS place, r.used"
							  " FROM unnest($1, $2) AS r (id, used)"
							  " JOIN apikeys.keys l ON l.id = r.id"
							  " WHERE" IS_DUE
							  " FOR NO KEY UPDATE OF l SKIP LOCKED) u"
							  " WHERE k.ctid = u.place",
							  3, types, args, NULL, false, 0) < 0)
		elog(ERROR, "could not write last_used_at");
	if (SPI_processed < batch->n)
		find_passed_over(batch, types, args);
}

/* Keys are many and seldom used: forget them but for what is pending. */
static void
forget_written(void)
{
	HASH_SEQ_STATUS seq;
	Use		   *use;

	if (npending == 0)
	{
		hash_destroy(uses);
		uses = NULL;
		return;
	}
	hash_seq_init(&seq, uses);
	while ((use = hash_seq_search(&seq)) != NULL)
		if (!use->pending)
			(void) hash_search(uses, &use->key_id, HASH_REMOVE, NULL);
}

/*
 * Write what was noted, or a part of it if that is much and not all is asked
 * for, as when the worker leaves.  A failure is logged and forgotten, unless
 * SIGTERM is the reason: the worker writes it when it closes.
 *
 * What a worker that failed had pending is forgotten with it.
 */
void
ak_write_uses(AkDatabase *db, bool all)
{
	static int	part = 0;
	Batch		batch;
	bool		cancelled;

	db->uses_pending = npending;
	if (npending == 0)
		return;
	take_pending(&batch, part, all);
	part = (part + 1) % PARTS;
	cancelled = batch.n > 0 && !ak_worker_transaction(write_uses, &batch) &&
		ShutdownRequestPending;
	for (int i = 0; i < batch.n; i++)
	{
		Use		   *use = batch.uses[i];

		if (batch.passed_over[i] && !all)
		{
			use->not_before = ak_elapsed() +
				Min(ak_last_used_interval * USECS_PER_SEC, RETRY_TIME);
			npassed_over++;
			retry_at = Min(retry_at, use->not_before);
		}
		else if (!cancelled)
		{
			use->written = use->used;
			continue;
		}
		put_pending(use);
	}
	db->uses_pending = npending;
	pfree(batch.uses);
	pfree(batch.passed_over);
	if (hash_get_num_entries(uses) > REMEMBERED_MAX)
		forget_written();
}

/* Whether something is to be written at the next flush. */
bool
ak_uses_are_due(void)
{
	return npending > npassed_over;
}

/* When what was passed over is to be tried again, by ak_elapsed(). */
int64
ak_uses_retry_at(void)
{
	return retry_at;
}
