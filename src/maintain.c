/*-------------------------------------------------------------------------
 *
 * maintain.c
 *	  Tidy up a database: expired keys, the partitions of the history, and what
 *	  an erasure could not reach.  Runs in its worker.
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
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"

#include "worker.h"

/* Partitions made ahead, beside today's. */
#define DAYS_AHEAD 2

/* Expired keys marked in one step. */
#define SWEEP_BATCH 1000

/* Rows of usage looked at in one step. */
#define USAGE_BATCH 10000

/* Old rows of the DEFAULT partition removed in one step. */
#define HISTORY_BATCH 10000

/* Old request ids removed in one step. */
#define REQUEST_ID_BATCH 10000

/*
 * Partitions that may fail to have their locks in one round: readers of the
 * history queue behind each try.
 */
#define LOCK_TRIES 3

typedef enum StepResult
{
	STEP_FAILED,				/* the error is in the server log; next round */
	STEP_AGAIN,					/* there is more of the same to do */
	STEP_DONE
} StepResult;

typedef struct Round
{
	int			julian;			/* today */
	bool		flushed;		/* the history buffer was emptied before */
	int			step;			/* the next one; see steps[] */
	int			days_ahead;		/* of the next partition */
	char		undroppable[NAMEDATALEN];	/* old partitions up to this one were
											 * tried; empty: none yet */
	int			lock_tries;
} Round;

static Round current;

static StepResult
step(AkTransaction body, void *arg, const bool *again)
{
	if (!ak_worker_transaction(body, arg))
		return STEP_FAILED;
	return *again ? STEP_AGAIN : STEP_DONE;
}

static void
run(const char *query)
{
	if (SPI_execute(query, false, 0) < 0)
		elog(ERROR, "could not execute: %s", query);
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

static StepResult
sweep_step(void)
{
	bool		again = false;

	return step(sweep_keys, &again, &again);
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
	run("UPDATE apikeys.requests SET ip_address = NULL"
		" WHERE key_id = ANY (ARRAY(SELECT e.key_id FROM apikeys.erasures e))"
		" AND \"timestamp\" >= (SELECT min(e.erased_at) FROM apikeys.erasures e) - interval '7 days'"
		" AND ip_address IS NOT NULL");
	if (flushed)
		run("DELETE FROM apikeys.erasures"
			" WHERE noticed_at < now() - interval '1 hour'");
	run("UPDATE apikeys.erasures SET noticed_at = now()"
		" WHERE noticed_at IS NULL");
}

static StepResult
erasure_step(void)
{
	static const bool again = false;

	return step(clear_addresses, &current.flushed, &again);
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
static StepResult
usage_step(void)
{
	static Walk walk;
	static int64 next = 0;

	if (!walk.again)
	{
		if (ak_elapsed() < next)
			return STEP_DONE;
		next = ak_elapsed() + USECS_PER_HOUR;
	}
	return step(remove_orphans, &walk, &walk.again);
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

static StepResult
request_id_step(void)
{
	bool		again = false;

	return step(remove_request_ids, &again, &again);
}

/* ----- partitions ----- */

typedef struct Day
{
	int			julian;
	char		name[64];		/* of its partition */
	char		from[32];
	char		until[32];
} Day;

static void
format_date(int julian, char *out, Size size, const char *format)
{
	int			year,
				month,
				day;

	j2date(julian, &year, &month, &day);
	snprintf(out, size, format, year, month, day);
}

static void
set_day(Day *day, int julian)
{
	day->julian = julian;
	format_date(julian, day->name, sizeof(day->name), "requests_%04d_%02d_%02d");
	format_date(julian, day->from, sizeof(day->from), "%04d-%02d-%02d 00:00:00+00");
	format_date(julian + 1, day->until, sizeof(day->until), "%04d-%02d-%02d 00:00:00+00");
}

static int
today(void)
{
	return POSTGRES_EPOCH_JDATE +
		(int) (GetCurrentTimestamp() / USECS_PER_DAY);
}

/* The columns of the history that take values, as a list in SQL. */
static char *
stored_columns(void)
{
	if (SPI_execute("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)"
					" FROM pg_attribute"
					" WHERE attrelid = 'apikeys.requests'::regclass AND attnum > 0"
					" AND NOT attisdropped AND attgenerated = ''",
					true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not list the columns of apikeys.requests");
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}

/*
 * Whether there is nothing to make for a day: its partition is there, if only as
 * a table that somebody has detached, or a partition of somebody's own has some of
 * the day.  What it leaves of it goes to the DEFAULT partition.
 */
static bool
is_taken(const Day *day)
{
	char	   *query = psprintf("SELECT FROM pg_class WHERE relname = '%s'"
								 " AND relnamespace = 'apikeys'::regnamespace"
								 " UNION ALL SELECT FROM pg_inherits i"
								 " JOIN pg_class c ON c.oid = i.inhrelid,"
								 " regexp_match(pg_get_expr(c.relpartbound, c.oid),"
								 " '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') b"
								 " WHERE i.inhparent = 'apikeys.requests'::regclass"
								 " AND CASE WHEN b[1] = 'MINVALUE' THEN true"
								 " ELSE btrim(b[1], '''')::timestamptz < '%s' END"
								 " AND CASE WHEN b[2] = 'MAXVALUE' THEN true"
								 " ELSE btrim(b[2], '''')::timestamptz > '%s' END",
								 day->name, day->until, day->from);

	if (SPI_execute(query, true, 1) < 0)
		elog(ERROR, "could not look for a partition");
	return SPI_processed > 0;
}

/*
 * ALTER DEFAULT PRIVILEGES may have granted a new partition: who may see the
 * history is granted apikeys.requests.
 */
static void
revoke_defaults(const char *partition)
{
	char	   *grantees;

	if (SPI_execute(psprintf("SELECT string_agg(DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC'"
							 " ELSE a.grantee::regrole::text END, ', ')"
							 " FROM pg_class c, aclexplode(c.relacl) a"
							 " WHERE c.oid = 'apikeys.%s'::regclass AND a.grantee <> c.relowner",
							 partition), false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the privileges of a partition");
	grantees = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (grantees != NULL)
		run(psprintf("REVOKE ALL ON apikeys.%s FROM %s CASCADE", partition,
					 grantees));
}

/*
 * Make a day's partition, unless it is taken.  What the DEFAULT partition
 * caught of that day moves into it.
 */
static void
make_partition(void *arg)
{
	const Day  *day = arg;
	char	   *columns;

	if (is_taken(day))
		return;
	columns = stored_columns();

	/* What a DBA has added to the history, ATTACH wants to find. */
	run(psprintf("CREATE TABLE apikeys.%s (LIKE apikeys.requests"
				 " INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)",
				 day->name));
	revoke_defaults(day->name);

	/* No primary key: else a publication would refuse updates and deletes. */
	run(psprintf("ALTER TABLE apikeys.%s REPLICA IDENTITY FULL", day->name));
	ak_plan_by_index();
	run(psprintf("WITH moved AS (DELETE FROM apikeys.requests_default"
				 " WHERE \"timestamp\" >= '%s' AND \"timestamp\" < '%s' RETURNING *)"
				 " INSERT INTO apikeys.%s (%s) SELECT %s FROM moved",
				 day->from, day->until, day->name, columns, columns));
	run(psprintf("CREATE INDEX %s_key_id_idx ON apikeys.%s (key_id, \"timestamp\")",
				 day->name, day->name));
	run(psprintf("CREATE INDEX %s_denied_idx ON apikeys.%s (\"timestamp\")"
				 " WHERE status = 'denied'", day->name, day->name));
	run(psprintf("ALTER TABLE apikeys.requests ATTACH PARTITION apikeys.%s"
				 " FOR VALUES FROM ('%s') TO ('%s')",
				 day->name, day->from, day->until));
}

/*
 * Drop the oldest partition if it lies wholly before a day, but for those that
 * were tried in this round.  One at a time: each takes a lock on the whole
 * history for a moment.  Then what the DEFAULT partition has from before it, by
 * its index: it may have all of the history (a restore of data alone).
 */
typedef struct Retention
{
	Day			first_kept;
	char		oldest[NAMEDATALEN];	/* empty: there is none */
	bool		again;
} Retention;

static void
drop_oldest_partition(void *arg)
{
	Retention  *retention = arg;
	char	   *oldest = psprintf("SELECT c.relname FROM pg_inherits i"
								  " JOIN pg_class c ON c.oid = i.inhrelid"
								  " WHERE i.inhparent = 'apikeys.requests'::regclass"
								  " AND c.relname ~ '^requests_\\d{4}_\\d\\d_\\d\\d$'"
								  " AND c.relname > '%s'"
								  " AND c.relname < '%s' ORDER BY c.relname LIMIT 1",
								  current.undroppable,
								  retention->first_kept.name);

	if (SPI_execute(oldest, true, 1) < 0)
		elog(ERROR, "could not look for old partitions");
	retention->again = SPI_processed > 0;
	if (retention->again)
	{
		strlcpy(retention->oldest,
				SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1),
				sizeof(retention->oldest));
		run(psprintf("DROP TABLE apikeys.%s", retention->oldest));
	}
	else
	{
		ak_plan_by_index();
		run(psprintf("DELETE FROM apikeys.requests_default WHERE ctid = ANY (ARRAY("
					 "SELECT ctid FROM apikeys.requests_default"
					 " WHERE \"timestamp\" < '%s' ORDER BY \"timestamp\" LIMIT %d))",
					 retention->first_kept.from, HISTORY_BATCH));
		retention->again = SPI_processed == HISTORY_BATCH;
	}
}

/*
 * A partition could not be dropped: go on with the next one, unless too many
 * were locked.
 */
static StepResult
pass_over(const char *partition)
{
	bool		locked = ak_my_db->last_failure.sqlerrcode ==
		ERRCODE_LOCK_NOT_AVAILABLE;

	if (locked && ++current.lock_tries >= LOCK_TRIES)
		return STEP_FAILED;
	strlcpy(current.undroppable, partition, sizeof(current.undroppable));
	return STEP_AGAIN;
}

static StepResult
partition_step(void)
{
	Day			day;
	bool		again = current.days_ahead < DAYS_AHEAD;

	set_day(&day, current.julian + current.days_ahead++);
	return step(make_partition, &day, &again);
}

/*
 * The days that the retention reaches back, wholly or partly: those are kept.
 */
static int
retained_days(void)
{
	const int	day = MINS_PER_HOUR * HOURS_PER_DAY;

	return ak_history_retention / day + (ak_history_retention % day != 0);
}

static StepResult
retention_step(void)
{
	Retention	retention = {.oldest = ""};
	StepResult	result;

	/* One that reaches back beyond the year 1 keeps all, as 0 does. */
	if (ak_history_retention == 0 ||
		retained_days() > current.julian - date2j(1, 1, 1))
		return STEP_DONE;
	set_day(&retention.first_kept, current.julian - retained_days());
	result = step(drop_oldest_partition, &retention, &retention.again);
	if (result == STEP_FAILED && retention.oldest[0] != '\0')
		return pass_over(retention.oldest);
	return result;
}

/* ----- a round ----- */

static StepResult (*const steps[]) (void) = {
	partition_step, retention_step, sweep_step, erasure_step, usage_step,
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
		.julian = today(),.flushed = flushed
	};
}

/* Do the next step of the round.  False if it is over. */
bool
ak_maintain_step(void)
{
	if (steps[current.step] () != STEP_AGAIN)
		current.step++;
	return current.step < lengthof(steps);
}
