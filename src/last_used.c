/*-------------------------------------------------------------------------
 *
 * last_used.c
 *	  Keep apikeys.keys.last_used_at, coarsely.  Runs in a database's worker.
 *
 * A key's row is updated when it is used for the first time and then at most
 * once in apikeys.last_used_interval, so that a hot key does not rewrite its
 * row at every flush.  Rows that somebody has locked are passed over: the next
 * use brings them up again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "worker.h"

/* The worker remembers at most this many keys. */
#define REMEMBERED_MAX 100000

typedef struct Use
{
	pg_uuid_t	key_id;
	TimestampTz used;
	TimestampTz written;		/* 0: not by this worker */
	bool		pending;
} Use;

static HTAB *uses = NULL;
static int	npending = 0;

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
		use->pending = false;
	}
	use->used = Max(use->used, at);
	if (!use->pending &&
		use->used - use->written >= ak_last_used_interval * USECS_PER_SEC)
	{
		use->pending = true;
		npending++;
	}
}

static void
write_uses(void *arg)
{
	Datum	   *ids = palloc(npending * sizeof(Datum));
	Datum	   *times = palloc(npending * sizeof(Datum));
	Datum		args[3];
	Oid			types[] = {UUIDARRAYOID, TIMESTAMPTZARRAYOID, FLOAT8OID};
	HASH_SEQ_STATUS seq;
	Use		   *use;
	int			n = 0;

	hash_seq_init(&seq, uses);
	while ((use = hash_seq_search(&seq)) != NULL)
		if (use->pending)
		{
			ids[n] = UUIDPGetDatum(&use->key_id);
			times[n++] = TimestampTzGetDatum(use->used);
		}
	args[0] = PointerGetDatum(construct_array(ids, n, UUIDOID, UUID_LEN, false,
											  TYPALIGN_CHAR));
	args[1] = PointerGetDatum(construct_array(times, n, TIMESTAMPTZOID, 8,
											  FLOAT8PASSBYVAL,
											  TYPALIGN_DOUBLE));
	args[2] = Float8GetDatum(ak_last_used_interval);

	/* Losing this in a crash costs nothing. */
	ak_set_locally("synchronous_commit", "off");
	ak_plan_by_index();
	if (SPI_execute_with_args("UPDATE apikeys.keys k SET last_used_at = u.used"
							  " FROM (SELECT l.id, r.used"
							  " FROM unnest($1, $2) AS r (id, used)"
							  " JOIN apikeys.keys l ON l.id = r.id"
							  " WHERE l.last_used_at IS NULL"
							  " OR l.last_used_at <= r.used - make_interval(secs => $3)"
							  " ORDER BY l.id"
							  " FOR NO KEY UPDATE OF l SKIP LOCKED) u"
							  " WHERE k.id = u.id",
							  3, types, args, NULL, false, 0) < 0)
		elog(ERROR, "could not write last_used_at");
}

/* Write what was noted.  A failure is logged and forgotten. */
void
ak_write_uses(void)
{
	HASH_SEQ_STATUS seq;
	Use		   *use;

	if (npending == 0)
		return;
	(void) ak_worker_transaction(write_uses, NULL);

	hash_seq_init(&seq, uses);
	while ((use = hash_seq_search(&seq)) != NULL)
		if (use->pending)
		{
			use->pending = false;
			use->written = use->used;
		}
	npending = 0;
	if (hash_get_num_entries(uses) > REMEMBERED_MAX)
	{
		hash_destroy(uses);
		uses = NULL;
	}
}
