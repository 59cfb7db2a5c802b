/*-------------------------------------------------------------------------
 *
 * maintain.c
 *	  Tidy up a database: expired keys, what was purged, and what an erasure could
 *	  not reach; partitions.c has the partitions of the history.  Runs in its worker.
 *
 * Goes by steps, each a short transaction of its own with the worker's
 * lock_timeout.  One that fails, say because it cannot have its locks, is logged,
 * and tried again in the next round; the other kinds of steps go on, lest one
 * that fails each time keep keys from expiring.  Between two steps the worker
 * looks whether anybody waits for a ceiling.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "worker.h"

/* Expired keys marked in one step. */
#define SWEEP_BATCH 1000

/* Rows of usage looked at in one step. */
#define USAGE_BATCH 10000

/* Old request ids removed in one step. */
#define REQUEST_ID_BATCH 10000

typedef struct Round
{
	bool		flushed;		/* the history buffer was emptied before */
	int			step;			/* the next one; see steps[] */
} Round;

static Round current;

/* Run a transaction as one step.  "again" is what it says of the rest. */
AkStepResult
ak_maintain_run(AkTransaction body, void *arg, const bool *again)
{
	if (!ak_worker_transaction(body, arg))
		return AK_STEP_FAILED;
	return *again ? AK_STEP_AGAIN : AK_STEP_DONE;
}

/* ----- expired keys ----- */

static void
sweep_keys(void *arg)
{
	bool	   *again = arg;
	Oid			types[] = {FLOAT8OID, INT4OID};
	Datum		args[] = {
		Float8GetDatum(ak_expired_key_grace), Int32GetDatum(SWEEP_BATCH)
	};

	if (SPI_execute_with_args("UPDATE apikeys.keys SET deleted_at = now(), updated_at = now()"
							  " WHERE id IN (SELECT id FROM apikeys.keys"
							  " WHERE deleted_at IS NULL"
							  " AND expires_at <= now() - make_interval(secs => $1)"
							  " ORDER BY expires_at LIMIT $2"
							  " FOR NO KEY UPDATE SKIP LOCKED)",
							  2, types, args, NULL, false, 0) < 0)
		elog(ERROR, "could not sweep expired keys");
	*again = SPI_processed == SWEEP_BATCH;
}

static AkStepResult
sweep_step(void)
{
	bool		again = false;

	return ak_maintain_run(sweep_keys, &again, &again);
}

/* ----- late history of users who were erased ----- */

/*
 * Clear the addresses that were on their way to the history when a user was
 * erased.  A key is looked after for an hour, longer than any verification
 * waits that found it alive; and until the history has been flushed ("arg"
 * points to whether it has), so that nothing of then is still to come.
 */
static void
clear_addresses(void *arg)
{
	bool		flushed = *(bool *) arg;

	if (SPI_execute("SELECT FROM apikeys.erasures", true, 1) < 0)
		elog(ERROR, "could not look for erasures");
	if (SPI_processed == 0)
		return;

	/* What was in the history then has been cleared: a few days will do. */
	ak_run("UPDATE apikeys.requests SET ip_address = NULL"
		   " WHERE key_id = ANY (ARRAY(SELECT e.key_id FROM apikeys.erasures e))"
		   " AND \"timestamp\" >= (SELECT min(e.erased_at) FROM apikeys.erasures e) - interval '7 days'"
		   " AND ip_address IS NOT NULL");
	if (flushed)
		ak_run("DELETE FROM apikeys.erasures"
			   " WHERE noticed_at < now() - interval '1 hour'");
	ak_run("UPDATE apikeys.erasures SET noticed_at = now()"
		   " WHERE noticed_at IS NULL");
}

static AkStepResult
erasure_step(void)
{
	static const bool again = false;

	return ak_maintain_run(clear_addresses, &current.flushed, &again);
}

/* ----- usage of what was purged ----- */

/*
 * Clients never write apikeys.usage, lest a ceiling wait for one of them: what
 * a purge leaves there is removed here.  Rows of a day ago: a key may have been
 * verified by the transaction that creates it.
 */
typedef struct Walk
{
	pg_uuid_t	position;		/* subjects up to this one are done */
	bool		again;			/* there are others */
} Walk;

static void
remove_orphans(void *arg)
{
	Walk	   *walk = arg;
	Oid			types[] = {UUIDOID, INT4OID};
	Datum		args[] = {
		UUIDPGetDatum(&walk->position), Int32GetDatum(USAGE_BATCH)
	};
	Datum		last;
	bool		isnull;

	ak_plan_by_index();
	if (SPI_execute_with_args("SELECT (SELECT subject_id FROM apikeys.usage"
							  " WHERE subject_id > $1 ORDER BY subject_id OFFSET $2 LIMIT 1)",
							  2, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.usage");
	last = ak_returned(0, 1, &isnull);
	walk->again = !isnull;
	args[1] = last;
	types[1] = UUIDOID;
	if (SPI_execute_with_args("DELETE FROM apikeys.usage u"
							  " WHERE u.subject_id > $1 AND ($2 IS NULL OR u.subject_id <= $2)"
							  " AND u.updated_at < now() - interval '1 day'"
							  " AND CASE u.subject WHEN 'key'"
							  " THEN NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.id = u.subject_id)"
							  " ELSE NOT EXISTS (SELECT FROM apikeys.users s WHERE s.subject_id = u.subject_id) END",
							  2, types, args, isnull ? " n" : NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not remove usage of what was purged");
	if (isnull)
		memset(&walk->position, 0, sizeof(pg_uuid_t));
	else
		walk->position = *DatumGetUUIDP(last);
}

/* It reads the whole table: once an hour will do. */
static AkStepResult
usage_step(void)
{
	static Walk walk;
	static int64 next = 0;

	if (!walk.again)
	{
		if (ak_elapsed() < next)
			return AK_STEP_DONE;
		next = ak_elapsed() + USECS_PER_HOUR;
	}
	return ak_maintain_run(remove_orphans, &walk, &walk.again);
}

/* ----- requests that were charged once ----- */

static void
remove_request_ids(void *arg)
{
	bool	   *again = arg;
	Oid			types[] = {FLOAT8OID, INT4OID};
	Datum		args[] = {
		Float8GetDatum(ak_request_id_window), Int32GetDatum(REQUEST_ID_BATCH)
	};

	/* Some room, since the clock may have moved. */
	if (SPI_execute_with_args("DELETE FROM apikeys.request_ids"
							  " WHERE (key_id, id_hash) IN (SELECT key_id, id_hash"
							  " FROM apikeys.request_ids"
							  " WHERE charged_at < now() - make_interval(secs => $1) - interval '1 hour'"
							  " ORDER BY charged_at LIMIT $2)",
							  2, types, args, NULL, false, 0) < 0)
		elog(ERROR, "could not remove old request ids");
	*again = SPI_processed == REQUEST_ID_BATCH;
}

static AkStepResult
request_id_step(void)
{
	bool		again = false;

	return ak_maintain_run(remove_request_ids, &again, &again);
}

/* ----- a round ----- */

static AkStepResult (*const steps[]) (void) = {
	ak_partition_step, ak_retention_step, sweep_step, erasure_step, usage_step,
	request_id_step
};

/*
 * Begin a round of everything that is due: when the worker starts, and every
 * apikeys.sweep_interval.  "flushed" says whether the history buffer has just
 * been emptied.
 */
void
ak_maintain_begin(bool flushed)
{
	current = (Round)
	{
		.flushed = flushed
	};
	ak_partitions_begin();
}

/* Do the next step of the round.  False if it is over. */
bool
ak_maintain_step(void)
{
	if (steps[current.step] () != AK_STEP_AGAIN)
		current.step++;
	return current.step < lengthof(steps);
}
